// Answers 200 with the request's apns-id once the body is read; prints its count when it is told to end.
// node node_server.js HOST PORT CERTIFICATE_WITH_KEY
'use strict';
const http2 = require('node:http2');
const fs = require('node:fs');

const [host, port, pem] = process.argv.slice(2);
const certificate = fs.readFileSync(pem);
const paths = new Set();
let answered = 0;
let bodyOctets = 0;

const server = http2.createSecureServer({
  key: certificate,
  cert: certificate,
  settings: { maxConcurrentStreams: 1000 },
});

server.on('stream', (stream, headers) => {
  stream.on('data', (chunk) => { bodyOctets += chunk.length; });
  stream.on('error', () => {});
  stream.on('end', () => {
    answered += 1;
    paths.add(headers[':path']);
    stream.respond({ ':status': 200, 'apns-id': headers['apns-id'] }, { endStream: true });
  });
});

process.on('SIGTERM', () => {
  const tally = { answered, device_tokens: paths.size, body_octets: bodyOctets };
  process.stdout.write(JSON.stringify(tally) + '\n', () => process.exit(0));
});

server.listen(Number(port), host);

// Node's http2 module as a contender, used directly: one session, a promise to each stream.
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs');
const http2 = require('node:http2');
const { job, content, run, pool, TOPIC, EXPIRATION } = require('./contest.js');

const session = http2.connect(`https://${job.host}:${job.port}`, {
  ca: fs.readFileSync(job.ca_file),
  maxSessionMemory: 1000, // MB; with its default of 10 a thousand streams end in ENHANCE_YOUR_CALM
});

function sendOne(token, index) {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ':method': 'POST',
      ':path': `/3/device/${token}`,
      authorization: `bearer ${job.provider_token}`,
      'apns-id': crypto.randomUUID(),
      'apns-topic': TOPIC,
      'apns-push-type': 'alert',
      'apns-priority': '10',
      'apns-expiration': String(EXPIRATION),
    });
    let status = 0;
    stream.on('response', (headers) => { status = headers[':status']; });
    stream.on('error', reject);
    stream.on('end', () => resolve(status === 200));
    stream.resume();
    stream.end(JSON.stringify(content(index)));
  });
}

session.on('remoteSettings', async () => {
  await run((tokens) => pool(tokens, sendOne), `node ${process.version}, nghttp2 ${process.versions.nghttp2}`);
  session.close();
});

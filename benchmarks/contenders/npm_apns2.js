// npm's apns2 as a contender; found through NODE_PATH.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const { job, content, run, pool, TOPIC, EXPIRATION } = require('./contest.js');

const entry = require.resolve('apns2');
const { ApnsClient, Notification } = require(entry);
const { Pool } = require(require.resolve('undici', { paths: [entry] }));
const version = JSON.parse(fs.readFileSync(path.join(entry, '../../../package.json'))).version;

const client = new ApnsClient({
  team: 'DEF123GHIJ',
  keyId: 'ABC123DEFG',
  signingKey: fs.readFileSync(job.key_file),
  defaultTopic: TOPIC,
  host: job.host,
});
// It always connects to port 443, with the authorities of the system: its own pool again, elsewhere.
client.client = new Pool(`https://${job.host}:${job.port}`, {
  connections: 32,
  pipelining: 1,
  allowH2: true,
  maxConcurrentStreams: 100,
  connect: { ca: fs.readFileSync(job.ca_file) },
});

async function sendOne(token, index) {
  const { aps } = content(index);
  await client.send(new Notification(token, {
    aps,
    expiration: EXPIRATION,
    priority: 10,
    type: 'alert',
  }));
  return true;
}

run((tokens) => pool(tokens, sendOne), `apns2 ${version}, node ${process.version}`)
  .then(() => client.close())
  .then(() => process.exit(0));

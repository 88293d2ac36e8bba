// @parse/node-apn as a contender; found through NODE_PATH.
'use strict';
const fs = require('node:fs');
const { job, content, run, pool, TOPIC, EXPIRATION } = require('./contest.js');

const apn = require('@parse/node-apn');
const version = JSON.parse(fs.readFileSync(require.resolve('@parse/node-apn/package.json'))).version;

const provider = new apn.Provider({
  token: { key: job.key_file, keyId: 'ABC123DEFG', teamId: 'DEF123GHIJ' },
  address: job.host,
  port: job.port,
  ca: [job.ca_file],
  production: true,
  requestTimeout: 60000,
});

async function sendOne(token, index) {
  const note = new apn.Notification();
  note.topic = TOPIC;
  note.pushType = 'alert';
  note.priority = 10;
  note.expiry = EXPIRATION;
  note.id = require('node:crypto').randomUUID();
  note.rawPayload = content(index);
  const result = await provider.send(note, token);
  return result.sent.length === 1;
}

run((tokens) => pool(tokens, sendOne), `@parse/node-apn ${version}, node ${process.version}`)
  .then(() => provider.shutdown(() => process.exit(0)));

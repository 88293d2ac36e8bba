// What the contenders in JavaScript share: the job, the device tokens, CPU, memory, the report.
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs');

const job = JSON.parse(process.argv[process.argv.length - 1]);
const TOPIC = 'com.example.opmanager';
const EXPIRATION = 4102444800;
const DEVICES = Array.from({ length: 10000 }, (_, number) => `sw-core-${String(number).padStart(8, '0')}`);
const REMARK = ': no answer for 60 seconds; last seen on port 48, rack 12, row 3, hall 2 of the data centre in Frankf';

function rss() { return process.memoryUsage.rss(); }

const before = rss();
const tokens = [];
for (let index = 0; index < job.warm_up + job.pushes; index += 1) {
  tokens.push(index.toString(16).padStart(8, '0') + crypto.randomBytes(28).toString('hex'));
}
const tokenOctets = rss() - before;

// The content of data.py; a test compares the two.
function content(index) {
  return {
    aps: {
      alert: { title: 'Core switch down', body: DEVICES[index % DEVICES.length] + REMARK },
      sound: 'default',
      'thread-id': 'opmanager-core',
    },
  };
}
if (JSON.stringify(content(0)).length !== 220) throw new Error('the payload has not 220 octets');

async function run(sendAll, versions) {
  let accepted = await sendAll(tokens.slice(0, job.warm_up));
  const cpu = process.cpuUsage();
  const wall = process.hrtime.bigint();
  accepted += await sendAll(tokens.slice(job.warm_up));
  const wallSeconds = Number(process.hrtime.bigint() - wall) / 1e9;
  const used = process.cpuUsage(cpu);
  const peak = Number(/VmHWM:\s+(\d+)/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
  console.log(JSON.stringify({
    accepted,
    cpu_seconds: (used.user + used.system) / 1e6,
    wall_seconds: wallSeconds,
    peak_octets: peak - tokenOctets,
    versions,
  }));
}

// Keep `job.streams` sends under way until all device tokens are used.
async function pool(tokensToSend, sendOne) {
  let next = 0;
  let accepted = 0;
  async function worker() {
    while (next < tokensToSend.length) {
      const index = next;
      next += 1;
      if (await sendOne(tokensToSend[index], index)) accepted += 1;
    }
  }
  await Promise.all(Array.from({ length: Math.min(job.streams, tokensToSend.length) }, worker));
  return accepted;
}

module.exports = { job, content, run, pool, TOPIC, EXPIRATION };

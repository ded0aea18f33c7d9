// Clients of Node: node-client.js <url> <http1|http2>; ends with "all is well".
'use strict';
const assert = require('assert');
const http = require('http');
const http2 = require('http2');
const [base, protocol] = process.argv.slice(2);
const body = Buffer.alloc(300000, 'node');

function collect(stream) {
  return new Promise((resolve, reject) => {
    const parts = [];
    stream.on('data', part => parts.push(part));
    stream.on('end', () => resolve(Buffer.concat(parts)));
    stream.on('error', reject);
  });
}

function ask1(agent, path, options, write) {
  return new Promise((resolve, reject) => {
    const request = http.request(new URL(path, base), { agent, ...options }, async response => {
      const text = await collect(response);
      resolve({ status: response.statusCode, text, trailers: response.trailers, fields: response.headers });
    });
    request.on('error', reject);
    write(request);
  });
}

async function overHttp1() {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  const echoes = [];
  for (let i = 0; i < 50; i++) echoes.push(ask1(agent, `/echo?${i}`, { method: 'POST' }, r => r.end(body)));
  for (const answer of await Promise.all(echoes)) assert.deepStrictEqual(answer.text, body);
  const counted = await ask1(agent, '/trailers', { method: 'POST', headers: { trailer: 'x-sent', te: 'trailers', connection: 'te' } }, r => {
    r.write('12345');
    r.addTrailers({ 'x-sent': 'yes' });
    r.end();
  });
  assert.deepStrictEqual(counted.trailers, { 'x-bytes': '5', 'x-got': 'yes' });
  const head = await ask1(agent, '/echo', { method: 'HEAD' }, r => r.end());
  assert.strictEqual(head.text.length, 0);
  agent.destroy();
}

function ask2(session, fields, write) {
  return new Promise((resolve, reject) => {
    const stream = session.request(fields, { endStream: false, waitForTrailers: !!fields['x-with-trailers'] });
    const answer = {};
    stream.on('response', got => { answer.fields = got; });
    stream.on('trailers', got => { answer.trailers = got; });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sent': 'yes' }));
    // An answer that came before the body's end may be followed by a reset.
    const ended = error => (answer.fields ? resolve(answer) : reject(error));
    collect(stream).then(text => resolve({ ...answer, text }), ended);
    write(stream);
  });
}

async function overHttp2() {
  const session = http2.connect(base);
  const echoes = [];
  // What is under way at once stays below Node's limit for a session.
  for (let i = 0; i < 20; i++) {
    echoes.push(ask2(session, { ':method': 'POST', ':path': `/echo?${i}` }, s => s.end(body)));
  }
  for (const answer of await Promise.all(echoes)) assert.deepStrictEqual(answer.text, body);
  const counted = await ask2(session, { ':method': 'POST', ':path': '/trailers', te: 'trailers', 'x-with-trailers': '1' }, s => s.end('12345'));
  assert.strictEqual(counted.trailers['x-bytes'], '5');
  assert.strictEqual(counted.trailers['x-got'], 'yes');
  const early = await ask2(session, { ':method': 'POST', ':path': '/early' }, s => s.end(body));
  assert.strictEqual(early.fields[':status'], 413);
  session.close();
}

(protocol === 'http1' ? overHttp1() : overHttp2()).then(
  () => console.log('all is well'),
  error => { console.error(error); process.exit(1); });

// HTTP/1.1 and HTTP/2 of Node: node.js <port of HTTP/1> <port of HTTP/2>
//
//   /page       500 bytes
//   /echo       the body, with what was asked in fields
//   /trailers   an answer with a trailer that counts the body
//   /early      an answer before the body, which nobody reads
//   /hints      103 before the answer
//   /slow       a line every 50 ms, ten of them
'use strict';
const http = require('http');
const http2 = require('http2');
const [port1, port2] = process.argv.slice(2).map(Number);

function answer(request, response) {
  const path = request.url.split('?')[0];
  if (path === '/echo') {
    response.setHeader('x-method', request.method);
    response.setHeader('x-target', request.url);
    response.setHeader('x-version', request.httpVersion);
    response.setHeader('x-fields', JSON.stringify(request.headers));
    if (request.headers['content-length']) response.setHeader('content-length', request.headers['content-length']);
    request.pipe(response);
  } else if (path === '/trailers') {
    let bytes = 0;
    response.setHeader('trailer', 'x-bytes');
    request.on('data', chunk => { bytes += chunk.length; });
    request.on('end', () => {
      response.write('counted\n');
      const trailers = { 'x-bytes': String(bytes) };
      if (request.trailers['x-sent']) trailers['x-got'] = request.trailers['x-sent'];
      response.addTrailers(trailers);
      response.end();
    });
  } else if (path === '/page') {
    response.end('page\n'.repeat(100));
  } else if (path === '/early') {
    response.statusCode = 413;
    response.end('too much\n');
  } else if (path === '/hints') {
    response.writeEarlyHints({ link: '</style.css>; rel=preload' });
    response.end('hinted\n');
  } else if (path === '/slow') {
    let left = 10;
    const timer = setInterval(() => {
      response.write('line\n');
      if (--left === 0) { clearInterval(timer); response.end(); }
    }, 50);
  } else {
    response.statusCode = 404;
    response.end('nothing here\n');
  }
}

http.createServer(answer).listen(port1, '127.0.0.1');
http2.createServer(answer).listen(port2, '127.0.0.1');

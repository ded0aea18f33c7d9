//! Every key and kind of the manual has a verdict of its own.

use super::{
    super::{config::Config, convert::convert, dtab::Dtab, world::World},
    no_files,
};
use crate::{ledger::Verdict, source::Source};

const ALL: &str = r#"
admin:
  ip: 127.0.0.1
  port: 9990
  tls: {certPath: a, keyPath: b}
  security: {uiEnabled: false, controlEnabled: true, diagnosticsEnabled: true, pathWhitelist: [a], pathBlacklist: [b]}
  socketOptions: {noDelay: true, reuseAddr: true, reusePort: false, keepAlive: false, readTimeoutMs: 1, writeTimeoutMs: 1, backlog: 9}
  workerThreads: 2
  shutdownGraceMs: 10000
  httpIdentifierPort: 9991
usage: {orgId: me, enabled: false}
telemetry:
- {kind: io.l5d.prometheus, path: /m, prefix: x}
- {kind: io.l5d.influxdb}
- {kind: io.l5d.statsd, experimental: true, prefix: p, hostname: h, port: 8125, gaugeIntervalMs: 1, sampleRate: 0.1}
- {kind: io.l5d.tracelog, sampleRate: 0.2, level: TRACE}
- {kind: io.l5d.recentRequests, sampleRate: 1.0, capacity: 10}
- {kind: io.l5d.zipkin, host: h, port: 9410, sampleRate: 0.001}
namers:
- {kind: io.l5d.fs, rootDir: d, prefix: /f}
- {kind: io.l5d.consul, host: h, port: 1, includeTag: true, useHealthCheck: true, healthStatuses: [passing], token: t, setHost: true, consistencyMode: stale, failFast: true, preferServiceAddress: false, weights: [{tag: a, weight: 2.0}], tls: {commonName: c}}
- {kind: io.l5d.k8s, host: h, port: 1, labelSelector: v}
- {kind: io.l5d.k8s.ns, host: h, port: 1, envVar: POD_NAMESPACE, labelSelector: v}
- {kind: io.l5d.k8s.external, experimental: true, host: h, port: 1, labelSelector: v}
- {kind: io.l5d.k8s.istio, experimental: true, host: h, port: 1}
- {kind: io.l5d.marathon, host: h, port: 1, uriPrefix: /u, ttlMs: 1, jitterMs: 1, useHealthCheck: true, tls: {disableValidation: true}}
- {kind: io.l5d.serversets, zkAddrs: [{host: h, port: 1}]}
- {kind: io.l5d.zkLeader, zkAddrs: [{host: h, port: 1}]}
- {kind: io.l5d.curator, experimental: true, zkAddrs: [{host: h, port: 1}], basePath: /b}
- {kind: io.l5d.rancher, experimental: true, ttlMs: 1, portMappings: {p: 1}}
- {kind: io.l5d.dnssrv, experimental: true, refreshIntervalSeconds: 1, dnsHosts: [h]}
- {kind: io.l5d.rewrite, prefix: /r, pattern: "/{a}", name: "/x/{a}"}
- kind: io.l5d.fs
  rootDir: e
  prefix: /t
  transformers:
  - {kind: io.l5d.port, port: 1}
  - {kind: io.l5d.localhost}
  - {kind: io.l5d.specificHost, host: 1.2.3.4}
  - {kind: io.l5d.k8s.daemonset, namespace: n, service: s, port: p, k8sHost: h, k8sPort: 1, hostNetwork: true}
  - {kind: io.l5d.k8s.localnode, hostNetwork: true}
  - {kind: io.l5d.replace, path: /$/inet/a/1}
  - {kind: io.l5d.const, path: /$/inet/a/1}
routers:
- protocol: http
  label: one
  dstPrefix: /svc
  bindingTimeoutMs: 1
  bindingCache: {paths: 1, trees: 1, bounds: 1, clients: 1, idleTtlSecs: 1}
  announcers: [{kind: io.l5d.serversets, zkAddrs: [{host: h, port: 1}], pathPrefix: /p}]
  originator: true
  experimental: true
  httpAccessLog: a
  httpAccessLogRollPolicy: never
  httpAccessLogAppend: true
  httpAccessLogRotateCount: -1
  maxHeadersKB: 8
  maxInitialLineKB: 4
  maxErrResponseKB: 5120
  streamingEnabled: true
  streamAfterContentLengthKB: 5
  compressionLevel: -1
  tracePropagator: {kind: io.l5d.zipkin}
  identifier:
  - {kind: io.l5d.header, header: h}
  - {kind: io.l5d.header.token, header: h}
  - {kind: io.l5d.methodAndHost, httpUriInDst: true}
  - {kind: io.l5d.path, segments: 1, consume: true}
  - {kind: io.l5d.static, path: /x}
  - {kind: io.l5d.ingress, host: h, port: 1, namespace: n, ingressClassAnnotation: c, ignoreDefaultBackends: true}
  servers:
  - port: 4140
    ip: 0.0.0.0
    label: s
    tls: {enabled: true, certPath: a, keyPath: b, intermediateCertsPath: c, caCertPath: d, requireClientAuth: true, protocols: [TLSv1.2]}
    socketOptions: {reusePort: true}
    maxConcurrentRequests: 1
    announce: [/#/io.l5d.serversets/x]
    clearContext: true
    timeoutMs: 1
    serverSession: {idleTimeMs: 1, lifeTimeMs: 1}
    addForwardedHeader: {by: {kind: ip}, for: {kind: requestRandom}}
    timestampHeader: x-t
    maxCallDepth: 10
  interpreter: {kind: io.l5d.namerd, experimental: true, dst: /$/inet/a/4100, namespace: n, retry: {baseSeconds: 1}, tls: {commonName: c}}
  service:
    totalTimeoutMs: 1
    responseClassifier: {kind: io.l5d.http.allSuccessful}
    retries:
      budget: {minRetriesPerSec: 1, percentCanRetry: 0.1, ttlSecs: 1}
      backoff: {kind: jittered, minMs: 1, maxMs: 2}
  client:
    loadBalancer: {kind: aperture, enableProbation: true, maxEffort: 1, smoothWindowMs: 1, lowLoad: 0.1, highLoad: 2, minAperture: 1}
    failureAccrual: {kind: io.l5d.successRateWindowed, successRate: 0.1, window: 1, backoff: {kind: constant, ms: 1}}
    requestAttemptTimeoutMs: 1
    failFast: true
    requeueBudget: {minRetriesPerSec: 1, percentCanRetry: 0.1, ttlSecs: 1}
    hostConnectionPool: {minSize: 1, maxSize: 1, idleTimeMs: 1, maxWaiters: 1}
    clientSession: {idleTimeMs: 1, lifeTimeMs: 1}
    tls: {enabled: true, commonName: c, trustCerts: [a], clientAuth: {certPath: a, keyPath: b, intermediateCertsPath: c}, protocols: [a]}
    forwardClientCert: true
- protocol: h2
  label: two
  h2AccessLog: a
  h2AccessLogRollPolicy: never
  h2AccessLogAppend: true
  h2AccessLogRotateCount: 1
  identifier: {kind: io.l5d.header.path, header: ":path", segments: 1}
  servers: [{port: 4142, windowUpdateRatio: 0.9, headerTableBytes: 1, initialStreamWindowBytes: 1, maxConcurrentStreamsPerConnection: 1, maxFrameBytes: 1, maxHeaderListByts: 1}]
  interpreter: {kind: io.l5d.mesh, dst: /$/inet/a/4321, root: /n, retry: {baseSeconds: 1}, failureThreshold: {}}
  service:
    kind: io.l5d.static
    configs:
    - {prefix: /a, responseClassifier: {kind: io.l5d.h2.grpc.compliant, successStatusCodes: [0]}, classificationTimeoutMs: 1}
    - {prefix: /b, responseClassifier: {kind: io.l5d.h2.grpc.retryableStatusCodes, retryableStatusCodes: [14]}, retryBufferSize: {requestBytes: 1, responseBytes: 1}}
  client:
    kind: io.l5d.static
    configs:
    - {prefix: /, windowUpdateRatio: 0.9, headerTableBytes: 1, initialStreamWindowBytes: 1, maxConcurrentStreamsPerConnection: 1, maxFrameBytes: 1, maxHeaderListByts: 1, requestAuthorizers: [{kind: io.l5d.k8s.istio}]}
    - {prefix: /b, loadBalancer: {kind: ewma, decayTimeMs: 1}, failureAccrual: {kind: io.l5d.successRate, successRate: 0.1, requests: 1}}
    - {prefix: /c, loadBalancer: {kind: heap}, failureAccrual: {kind: io.l5d.consecutiveFailures, failures: 1, backoff: {kind: jittered, minMs: 1, maxMs: 2}}}
- protocol: http
  label: three
  identifier: {kind: io.l5d.k8s.istio, host: h, port: 1}
  interpreter: {kind: io.l5d.k8s.istio, experimental: true, host: h, port: 1}
- protocol: http
  label: four
  interpreter: {kind: io.l5d.consul.interpreter, host: h, port: 1, pathPrefix: /p, namespace: n, token: t, datacenter: d, readConsistencyMode: stale, writeConsistencyMode: default, failFast: true, backoff: {kind: constant, ms: 1}, tls: {commonName: c}}
- protocol: http
  label: five
  interpreter: {kind: io.l5d.k8s.configMap, experimental: true, host: h, port: 1, namespace: n, name: m, filename: f}
- protocol: http
  label: six
  interpreter: {kind: io.l5d.fs, dtabFile: f, watched: true}
- protocol: thrift
  thriftProtocol: compact
  thriftMethodInDst: false
  servers: [{thriftFramed: true}]
  client: {thriftFramed: true, attemptTTwitterUpgrade: true, failureAccrual: {kind: none}}
- protocol: mux
  servers: [{port: 4141}]
- protocol: thriftmux
  servers: [{port: 4144}]
- protocol: smtp
  servers: [{port: 25}]
"#;

#[test]
fn every_key_of_the_manual_is_known() {
    let source = Source::of("l", ALL);
    let config = Config::read(&source).unwrap();
    let mut world = World::of_names(["/#/f/web"]);
    world.dtabs.insert("n".into(), Dtab::read("n", "/svc => /#/f").unwrap());
    for world in [World::default(), world] {
        let (_, ledger) = convert(&config, &world, &no_files, &[]);
        assert!(ledger.silent_lines(&source, |line| line.trim().is_empty()).is_empty());
        for entry in ledger.entries() {
            let Verdict::Dropped { meaning } = &entry.verdict else { continue };
            let is_known = !meaning.contains("is no key") && !meaning.contains("is no kind");
            assert!(is_known && !meaning.contains("older"), "{}: {meaning}", entry.place);
        }
    }
}

#[test]
fn what_runs_says_the_same_as_its_file() {
    // `/config.json` of a running Linkerd: JSON, and the table on one line.
    let json = r#"{"routers":[{"protocol":"http","servers":[{"port":4140}],"dtab":"/svc=>/$/inet/10.0.0.1/80;/svc/a=>/$/inet/10.0.0.2/80"}]}"#;
    let yaml = "routers:\n- protocol: http\n  servers: [{port: 4140}]\n  dtab: |\n    /svc => /$/inet/10.0.0.1/80 ;\n    /svc/a => /$/inet/10.0.0.2/80 ;\n";
    let shape = |text: &str| {
        let config = Config::read(&Source::of("l", text)).unwrap();
        let (program, _) = convert(&config, &World::default(), &no_files, &[]);
        let pools = program.pools.keys().cloned().collect::<Vec<_>>();
        let rules = match &program.listeners[0].accepts {
            crate::program::Accepts::Http { rules, .. } => {
                rules.iter().map(|rule| format!("{:?}", rule.when)).collect::<Vec<_>>()
            }
            crate::program::Accepts::Tcp { .. } => Vec::new(),
        };
        (pools, rules)
    };
    assert_eq!(shape(json), shape(yaml));
    assert_eq!(shape(json).1.len(), 2);
}

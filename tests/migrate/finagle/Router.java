import com.fasterxml.jackson.annotation.JsonInclude;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.dataformat.yaml.YAMLFactory;
import com.twitter.finagle.*;
import com.twitter.finagle.http.HeaderMap;
import com.twitter.finagle.http.HttpMuxer;
import com.twitter.finagle.http.Message;
import com.twitter.finagle.http.Method;
import com.twitter.finagle.http.Request;
import com.twitter.finagle.http.Response;
import com.twitter.finagle.http.Status;
import com.twitter.finagle.naming.NameInterpreter$;
import com.twitter.util.Await;
import com.twitter.util.Closable;
import com.twitter.util.Duration;
import com.twitter.util.Future;
import com.twitter.util.Return;
import com.twitter.util.Try;
import com.twitter.util.Var;
import java.io.File;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.LongAdder;
import scala.collection.JavaConverters;

/**
 * A stand-in for Linkerd 1.x, which no registry has. It is no Linkerd: it is made of what
 * Linkerd 1.7.5 is made of, Finagle 21.4.0. Servers, clients with their pools, balancers
 * and requeues, the table, binding and closing are Finagle's. Ours, as Linkerd's manual
 * and source have it: what is read of linkerd.yaml (one http router, names by a header,
 * io.l5d.fs whose files are read when a name is bound first and not watched), the order
 * of namers, hop-by-hop headers, Via, l5d-err, and the admin port. Not there: everything
 * else, among that l5d-dtab, l5d-ctx-*, retries by a classifier, and streaming.
 *
 * java Router linkerd.yaml
 */
public class Router {
    /** As Linkerd's keys are; one that is not known is refused, as Linkerd does it. */
    @JsonInclude(JsonInclude.Include.NON_NULL)
    public static class Config {
        public Admin admin = new Admin();
        public Usage usage;
        public List<Fs> namers = Collections.emptyList();
        public List<Http1> routers;
    }

    public static class Admin {
        public String ip = "127.0.0.1";
        public int port = 9990;
        public int shutdownGraceMs = 10000;
    }

    public static class Usage {
        public boolean enabled;
    }

    @JsonInclude(JsonInclude.Include.NON_NULL)
    public static class Fs {
        public String kind, rootDir, prefix;
    }

    @JsonInclude(JsonInclude.Include.NON_NULL)
    public static class Http1 {
        public String protocol, label = "http", dtab = "";
        public Token identifier = new Token();
        public Client client;
        public List<Server> servers = Collections.singletonList(new Server());
    }

    public static class Client {
        public Session clientSession = new Session();
    }

    /** How long a connection to a server may be kept. */
    public static class Session {
        public int lifeTimeMs;
    }

    public static class Token {
        public String kind = "io.l5d.header.token", header = "Host";
    }

    public static class Server {
        public String ip = "127.0.0.1";
        public int port = 4140;
    }

    /** RFC 9110 section 7.6.1; those of the framing are Finagle's. */
    static final List<String> HOP_BY_HOP = Arrays.asList(
        "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade");

    static final CountDownLatch ENDS = new CountDownLatch(1);
    static final Map<String, LongAdder> FIGURES = new ConcurrentSkipListMap<>();

    public static void main(String[] words) throws Exception {
        Config config = new ObjectMapper(new YAMLFactory()).readValue(new File(words[0]), Config.class);
        check(config.routers != null && config.routers.size() == 1, "one router");
        Http1 router = config.routers.get(0);
        check("http".equals(router.protocol), "protocol http");
        check("io.l5d.header.token".equals(router.identifier.kind), "io.l5d.header.token");
        Dtab dtab = Dtab.read(router.dtab);
        router.dtab = dtab.show();
        bindBy(dtab, namers(config.namers));
        List<Closable> servers = new ArrayList<>();
        Service<Request, Response> routed = new Routed(router);
        for (Server server : router.servers) {
            String scope = "rt/" + router.label + "/server/" + server.ip + "/" + server.port;
            servers.add(serve(server.ip, server.port, counted(scope, routed)));
        }
        servers.add(serve(config.admin.ip, config.admin.port, admin(config)));
        Duration grace = Duration.fromMilliseconds(config.admin.shutdownGraceMs);
        // What is idle is closed at once, the rest has that long. By SIGTERM, too.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(servers, grace)));
        ENDS.await();
        System.exit(0);
    }

    static void close(List<Closable> servers, Duration grace) {
        try {
            Await.ready(Closable.all(servers.toArray(new Closable[0])).close(grace), grace);
        } catch (com.twitter.util.TimeoutException | InterruptedException late) {
            System.err.println("ends with what it still has: " + late);
        }
    }

    static void check(boolean holds, String needed) {
        if (!holds) {
            throw new IllegalArgumentException("this stand-in takes nothing but " + needed);
        }
    }

    static ListeningServer serve(String ip, int port, Service<Request, Response> service) {
        return Http.server().withNoHttp2().serve(new InetSocketAddress(ip, port), service);
    }

    /** All names of all clients go that way from now on. */
    static void bindBy(Dtab dtab, List<Delegate.Configured> namers) {
        Dtab$.MODULE$.setBase(dtab);
        NameInterpreter$.MODULE$.setGlobal((table, path) -> Namer$.MODULE$.bind(
            Delegate.function(one -> Delegate.configured(table, namers, one)), new NameTree.Leaf<>(path)));
    }

    static List<Delegate.Configured> namers(List<Fs> configured) {
        List<Delegate.Configured> namers = new ArrayList<>();
        for (Fs fs : configured) {
            check("io.l5d.fs".equals(fs.kind), "io.l5d.fs");
            namers.add(new Listed(Path.read("/#/" + (fs.prefix == null ? fs.kind : fs.prefix)), new File(fs.rootDir)));
        }
        Collections.reverse(namers);
        return namers;
    }

    /** io.l5d.fs: a file for each name, a line for each address. */
    static class Listed extends Delegate.Configured {
        final File root;

        Listed(Path prefix, File root) {
            this.prefix = prefix;
            this.root = root;
        }

        @Override
        NameTree<Name> named(Path path) {
            Path id = path.take(prefix.size() + 1);
            String label = path.size() > prefix.size() ? path.showElems().apply(prefix.size()) : "";
            File file = new File(root, label);
            if (!label.matches("\\w[\\w.-]*") || !file.isFile()) {
                return null;
            }
            try {
                List<Address> addresses = new ArrayList<>();
                for (String line : Files.readAllLines(file.toPath())) {
                    String[] words = line.replaceFirst("#.*", "").trim().split("\\s+");
                    if (words.length == 2) {
                        addresses.add(Addresses.newInetAddress(new InetSocketAddress(words[0], Integer.parseInt(words[1]))));
                    } else {
                        check(words[0].isEmpty(), "<host> <port> in " + file);
                    }
                }
                Var<Addr> bound = Var.value(Addrs.newBoundAddr(addresses));
                return new NameTree.Leaf<Name>(new Name.Bound(bound, id, path.drop(id.size())));
            } catch (IOException lost) {
                throw new IllegalStateException(lost);
            }
        }
    }

    static class Routed extends Service<Request, Response> {
        final Http1 router;
        /** By names of services; Linkerd forgets those that are not used. */
        final Map<String, Service<Request, Response>> services = new ConcurrentHashMap<>();
        final Http.Client client;

        Routed(Http1 router) {
            this.router = router;
            Http.Client plain = Http.client().withNoHttp2().withSessionQualifier().noFailFast();
            client = router.client == null ? plain
                : plain.withSession().maxLifeTime(Duration.fromMilliseconds(router.client.clientSession.lifeTimeMs));
        }

        public Future<Response> apply(Request request) {
            String token = request.headerMap().getOrNull(router.identifier.header);
            if (token == null || token.isEmpty()) {
                return Future.value(error(400, "no service is named by " + router.identifier.header));
            }
            passing(request);
            Path name = Path.Utf8$.MODULE$.apply(JavaConverters.asScalaBuffer(Arrays.asList("svc", token)));
            Service<Request, Response> service = services.computeIfAbsent(name.show(), this::service);
            request.headerMap().set("l5d-dst-service", name.show());
            return service.apply(request).transform(Delegate.function(Routed::answered));
        }

        Service<Request, Response> service(String name) {
            Service<Request, Response> bound = client.newService(new Name.Path(Path.read(name)), router.label);
            return counted("rt/" + router.label + "/service" + name, bound);
        }

        static Future<Response> answered(Try<Response> got) {
            if (got instanceof Return) {
                passing(got.get());
                return Future.value(got.get());
            }
            Throwable why = ((com.twitter.util.Throw<Response>) got).e();
            boolean isLate = why instanceof TimeoutException || why instanceof com.twitter.util.TimeoutException;
            return Future.value(error(isLate ? 503 : 502, String.valueOf(why.getMessage())));
        }
    }

    static void passing(Message message) {
        HeaderMap headers = message.headerMap();
        String named = headers.getOrNull("Connection");
        if (named != null) {
            Arrays.stream(named.split(",")).map(String::trim).forEach(headers::removeHeader);
        }
        HOP_BY_HOP.forEach(headers::removeHeader);
        String via = headers.getOrNull("Via");
        headers.set("Via", via == null ? "1.1 linkerd" : via + ", 1.1 linkerd");
    }

    static Response error(int status, String why) {
        Response response = Response.apply(Status.fromCode(status));
        response.headerMap().set("l5d-err", URLEncoder.encode(why, StandardCharsets.UTF_8));
        response.setContentString(why);
        return response;
    }

    /** As Linkerd counts by io.l5d.http.nonRetryable5XX. */
    static Service<Request, Response> counted(String scope, Service<Request, Response> service) {
        return Service.mk(Delegate.function(request -> {
            count(scope + "/requests");
            return service.apply(request).respond(Delegate.function(got -> {
                boolean isFailure = !(got instanceof Return) || got.get().statusCode() >= 500;
                count(scope + (isFailure ? "/failures" : "/success"));
                return scala.runtime.BoxedUnit.UNIT;
            }));
        }));
    }

    static void count(String figure) {
        FIGURES.computeIfAbsent(figure, any -> new LongAdder()).increment();
    }

    static Service<Request, Response> admin(Config config) {
        return new HttpMuxer()
            .withHandler("/admin/ping", told("text/plain", () -> "pong"))
            .withHandler("/config.json", told("application/json", () -> Delegate.JSON.writeValueAsString(config)))
            .withHandler("/admin/metrics.json", told("application/json", () -> Delegate.JSON.writeValueAsString(FIGURES)))
            .withHandler("/admin/shutdown", Service.mk(Delegate.function(request -> {
                boolean isPost = request.method().equals(Method.Post());
                if (isPost) {
                    ENDS.countDown();
                }
                return Future.value(Response.apply(Status.fromCode(isPost ? 200 : 405)));
            })));
    }

    interface Text {
        String of() throws IOException;
    }

    static Service<Request, Response> told(String type, Text text) {
        return Service.mk(Delegate.function(request -> {
            Response response = Response.apply();
            response.setContentType(type, "utf-8");
            try {
                response.setContentString(text.of());
            } catch (IOException wrong) {
                response = error(500, wrong.getMessage());
            }
            return Future.value(response);
        }));
    }
}

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.twitter.finagle.*;
import com.twitter.finagle.naming.DefaultInterpreter$;
import com.twitter.util.Activity;
import com.twitter.util.Var;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import scala.Function1;
import scala.collection.Iterator;
import scala.runtime.AbstractFunction1;

/**
 * What Finagle makes of a table and a name, for each line {"dtab", "path", "bare"} of
 * the input. The first argument is {"namers": [{"prefix", "labels"} or {"prefix",
 * "from", "to"}], "names": []}: namers as Linkerd configures them, later ones asked
 * first; where it is bare there are none.
 */
public class Delegate {
    static final ObjectMapper JSON = new ObjectMapper();
    /** A table may branch a hundred times over; Linkerd would go on. */
    static final int MAX_LOOKUPS = 500;
    static final Exception TOO_MANY = new IllegalStateException("too many lookups");

    public static void main(String[] words) throws Exception {
        // Finagle recurs; a table of a hundred steps is deep.
        Thread thread = new Thread(null, () -> run(words[0]), "delegate", 512L << 20);
        thread.start();
        thread.join();
    }

    static void run(String world) {
        try {
            List<Configured> namers = namers(JSON.readTree(world));
            BufferedReader in = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
            PrintStream out = new PrintStream(System.out, true, "UTF-8");
            for (String line; (line = in.readLine()) != null; ) {
                JsonNode asked = JSON.readTree(line);
                boolean bare = asked.path("bare").asBoolean();
                List<Configured> asks = bare ? Collections.emptyList() : namers;
                out.println(answer(asked.get("dtab").asText(), asked.get("path").asText(), asks));
            }
        } catch (java.io.IOException wrong) {
            throw new IllegalStateException(wrong);
        }
    }

    static ObjectNode answer(String text, String name, List<Configured> namers) {
        ObjectNode said = JSON.createObjectNode();
        Dtab dtab;
        try {
            dtab = Dtab.read(text);
            said.put("show", dtab.show());
            ArrayNode entries = said.putArray("dtab");
            for (Iterator<Dentry> all = dtab.iterator(); all.hasNext(); ) {
                Dentry entry = all.next();
                entries.addArray().add(entry.prefix().show()).add(tree(entry.dst()));
            }
        } catch (IllegalArgumentException wrong) {
            return said.put("wrong", wrong.getMessage());
        }
        Path path;
        try {
            path = Path.read(name);
            said.put("path", path.show());
        } catch (IllegalArgumentException wrong) {
            return said.put("wrong_path", wrong.getMessage());
        }
        int[] lookups = {0};
        Function1<Path, Activity<NameTree<Name>>> lookup = function(one -> {
            if (++lookups[0] > MAX_LOOKUPS) {
                return cast(Activity.exception(TOO_MANY));
            }
            return configured(dtab, namers, one);
        });
        NameTree<Path> leaf = new NameTree.Leaf<>(path);
        JsonNode bound = bound(() -> Namer$.MODULE$.bind(lookup, leaf));
        if (lookups[0] > MAX_LOOKUPS) {
            return said.put("too_much", true);
        }
        said.set("bound", bound);
        if (namers.isEmpty()) {
            said.set("default", bound(() -> DefaultInterpreter$.MODULE$.bind(dtab, path)));
        }
        return said;
    }

    interface Binding {
        Activity<NameTree<Name.Bound>> bind();
    }

    static JsonNode bound(Binding binding) {
        Object state;
        try {
            state = binding.bind().run().sample();
        } catch (RuntimeException wrong) {
            state = new Activity.Failed(wrong);
        }
        ObjectNode said = JSON.createObjectNode();
        if (state instanceof Activity.Ok) {
            leaves(said.putArray("leaves"), 1, (NameTree<?>) ((Activity.Ok<?>) state).t());
        } else if (state instanceof Activity.Failed) {
            said.put("failed", String.valueOf(((Activity.Failed) state).exc()));
        } else {
            said.put("failed", "pending");
        }
        return said;
    }

    /** The leaves of a bound tree with their shares: each request takes a branch by weight. */
    static void leaves(ArrayNode said, double share, NameTree<?> tree) {
        if (tree instanceof NameTree.Union) {
            List<NameTree.Weighted<?>> trees = new ArrayList<>();
            ((NameTree.Union<?>) tree).trees().foreach(function(trees::add));
            double all = trees.stream().mapToDouble(NameTree.Weighted::weight).sum();
            for (NameTree.Weighted<?> one : trees) {
                double part = all > 0 ? one.weight() / all : 1.0 / trees.size();
                leaves(said, share * part, one.tree());
            }
            return;
        }
        ArrayNode leaf = said.addArray().add(share);
        if (tree instanceof NameTree.Leaf) {
            Name.Bound bound = (Name.Bound) ((NameTree.Leaf<?>) tree).value();
            leaf.add(((Path) bound.id()).show()).add(bound.path().show());
        } else {
            leaf.add(tree.toString());
        }
    }

    static JsonNode tree(NameTree<Path> tree) {
        ArrayNode said = JSON.createArrayNode();
        if (tree instanceof NameTree.Leaf) {
            return JSON.getNodeFactory().textNode(((NameTree.Leaf<Path>) tree).value().show());
        } else if (tree instanceof NameTree.Alt) {
            said.add("|");
            ((NameTree.Alt<Path>) tree).trees().foreach(function(one -> said.add(tree(one))));
        } else if (tree instanceof NameTree.Union) {
            said.add("&");
            ((NameTree.Union<Path>) tree).trees().foreach(function(one ->
                said.addArray().add(Double.toString(one.weight())).add(tree(one.tree()))));
        } else {
            String text = tree.toString();
            String sign = text.equals("Neg") ? "~" : text.equals("Fail") ? "!" : "$";
            return JSON.getNodeFactory().textNode(sign);
        }
        return said;
    }

    /** The order in which Linkerd's ConfiguredDtabNamer asks; binding is Finagle's. */
    static Activity<NameTree<Name>> configured(Dtab dtab, List<Configured> namers, Path path) {
        NameTree<Name.Path> found = dtab.lookup(path);
        if (!found.equals(NameTree.Neg$.MODULE$)) {
            return Activity.value(cast(found));
        }
        for (Configured namer : namers) {
            NameTree<Name> named = path.startsWith(namer.prefix) ? namer.named(path) : null;
            if (named != null) {
                return Activity.value(named);
            }
        }
        return Namer$.MODULE$.global().lookup(path);
    }

    /** Stands for a registry, or a rewriting namer. */
    static class Configured {
        Path prefix;
        int labels;
        Path from, to;
        Set<String> names = new HashSet<>();

        NameTree<Name> named(Path path) {
            if (from != null) {
                boolean is = path.drop(prefix.size()).startsWith(from);
                return is ? new NameTree.Leaf<Name>(new Name.Path(to)) : null;
            }
            int used = prefix.size() + labels;
            Path id = path.take(used);
            if (path.size() < used || !names.contains(id.show())) {
                return null;
            }
            Var<Addr> nobody = Var.value((Addr) Addr.Neg$.MODULE$);
            return new NameTree.Leaf<Name>(new Name.Bound(nobody, id, path.drop(used)));
        }
    }

    static List<Configured> namers(JsonNode world) {
        List<Configured> namers = new ArrayList<>();
        for (JsonNode node : world.get("namers")) {
            Configured namer = new Configured();
            namer.prefix = Path.read(node.get("prefix").asText());
            if (node.has("from")) {
                namer.from = Path.read(node.get("from").asText());
                namer.to = Path.read(node.get("to").asText());
            } else {
                namer.labels = node.get("labels").asInt();
                world.get("names").forEach(name -> namer.names.add(name.asText()));
            }
            namers.add(namer);
        }
        Collections.reverse(namers);
        return namers;
    }

    interface To<A, B> {
        B of(A a);
    }

    static <A, B> Function1<A, B> function(To<A, B> to) {
        return new AbstractFunction1<A, B>() {
            public B apply(A a) {
                return to.of(a);
            }
        };
    }

    @SuppressWarnings("unchecked")
    static <T> T cast(Object any) {
        return (T) any;
    }
}

# Two clusters and a site of machines, linked by meshctl alone; nobody reaches the
# gateway of north, which only dials out. Every site calls what each other one
# offers, and what both clusters offer under one name is one service.
# shellcheck shell=bash

# application CLUSTER NAME: exported, and a client beside it.
application() {
    sed "s/orders/$2/g; s/of \$(NAME)/of $1/; s/replicas: 2/replicas: 1/" tests/k8s/manifests/shop.yaml |
        k "$1" apply -f - >"$WORK/$1/applied" 2>&1 || fail "$1: $(cat "$WORK/$1/applied")"
}

# cluster_site CLUSTER OFFER [VALUE…]: with orders, and what it alone offers.
cluster_site() {
    cluster_dns "$1"
    install_chart "$1" "${@:3}"
    shop "$1"
    application "$1" orders
    application "$1" "$2"
}

# seen SITE SERVICE: by the caller's end there.
seen() {
    case $1 in
    west) journal web1 isthmus-proxy | jq -r .MESSAGE | grep "\"outbound\".*\"$2.shop\"" | newest_request ;;
    *) k "$1" -n shop logs deployment/client -c isthmus-proxy | grep "\"outbound\".*\"$2.shop\"" | newest_request ;;
    esac
}

# seen_by SITE SERVICE CALLER: by the end that answers there, of that caller.
seen_by() {
    case $1 in
    west) journal web1 isthmus-proxy | jq -r .MESSAGE ;;
    *) k "$1" -n shop logs "deployment/$2" -c isthmus-proxy ;;
    esac | grep "\"inbound\".*\"$3\"" | newest_request
}

# says WANTED COMMAND…: no more and no less.
says() {
    local said
    said=$("${@:2}")
    [ "$said" = "$1" ] || { echo "$said"; return 1; }
}

# calls SITE NAME: a machine knows no namespace of its own.
calls() {
    case $1 in
    west) in_network web1 env http_proxy=http://127.0.0.1:4140 curl -sf --max-time 5 "http://$2.shop/" ;;
    *) asks "$1" "$2" ;;
    esac
}

connects() {
    in_network "$1" timeout 3 bash -c "exec 3<>/dev/tcp/$2/$3" 2>/dev/null
}

# link SITE TO: the first redeems a token of the other, and dials.
link() {
    local token=$WORK/token-$1-$2
    meshctl_of "$2" link token --site "$1" >"$token" 2>"$WORK/last" || fail "$2: $(cat "$WORK/last")"
    meshctl_of "$1" link cluster "$2" - <"$token" >"$WORK/last" 2>&1 || fail "$1 to $2: $(cat "$WORK/last")"
}

# Clusters are spoken with from outside, by kubectl alone.
meshctl_of() {
    case $1 in
    west) in_machine control meshctl "${@:2}" ;;
    *) in_network operator env PATH="$BIN:$PATH" KUBECONFIG="$WORK/east/pki/admin.conf:$WORK/north/pki/admin.conf" \
        "$PROGRAMS/meshctl" --context "$1" "${@:2}" ;;
    esac
}

# linked SITE: with which others, each of them up.
linked() {
    meshctl_of "$1" links -o json | jq -r '[.links[] | select(.state == "up") | .site] | sort | join(" ")'
}

for name in east north; do
    cluster $name
    node $name
    volumes $name 1
done
machine control bookworm
machine web1 bookworm
add_application web1
connect operator 99
cluster_site east stock "$(reached_at east)" &
installing=$!
cluster_site north bills
wait $installing
boot control web1
install_packages control isthmus-federation
site control
install_packages web1 isthmus-vm-agent
join web1
for name in east/orders east/stock east/client north/orders north/bills north/client; do
    rolled_out ${name%/*} shop deployment/${name#*/}
done
eventually 20 backs web1
in_machine control meshctl service export web.shop >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
step 'two clusters and a site of machines run'

# Outside of north, what north has not begun; but its API server is nobody's gateway.
connects east 10.77.0.111 30443 || fail 'the rule would be of no use'
in_network north nft -f - <<'NFT'
table inet closed {
    counter tried {}
    chain incoming {
        type filter hook prerouting priority mangle
        tcp dport 6443 accept
        iifname eth0 meta l4proto { tcp, udp } ct state new counter name tried drop
    }
}
NFT
connects east 10.77.0.111 30443 && fail 'north is reached'
tried() {
    in_network north nft -j list counter inet closed tried | jq '.nftables[] | .counter // empty | .packets'
}
before=$(tried)
link north east
link north west
link west east
for name in east:'north west' north:'east west'; do
    eventually 20 says "${name#*:}" linked "${name%:*}"
    says "${name%:*}" eval "meshctl_of ${name%:*} status -o json | jq -r .site" >"$WORK/last" || fail "another site: $(cat "$WORK/last")"
done
meshctl_of nowhere links >"$WORK/last" 2>&1 && fail 'a context that is not there'
grep -q 'nowhere' "$WORK/last" || fail "$(cat "$WORK/last")"
step "north has dialled east and west, west has dialled east, all by meshctl --context; nobody is let in to north"

# What each site alone offers, at which port, and who calls from there.
declare -A OFFER=([east]=stock [north]=bills [west]=web) PORT=([east]='' [north]='' [west]=:8080)
declare -A CALLER=([east]=client [north]=client [west]=web)
# A machine is reached by the session that it has dialled.
declare -A ENTERS=([east]=direct [north]=direct [west]=reverse)
for from in east north west; do
    for to in east north west; do
        [ $from != $to ] || continue
        service=${OFFER[$to]} caller=spiffe://$from.example/ns/shop/sa/${CALLER[$from]}
        eventually 20 calls $from "$service${PORT[$to]}"
        answer=$(cat "$WORK/last")
        sent="outbound $service.shop by via gateway: spiffe://$to.example/ns/shop/sa/$service"
        taken="inbound $service.shop by ${ENTERS[$to]}: $caller"
        eventually 10 says "$sent" seen $from "$service"
        eventually 10 says "$taken" seen_by $to "$service" "$caller"
        step "$from calls $service: $answer; $sent; $taken"
    done
done
step "north has let nobody in, and $(($(tried) - before)) have tried"

# One service of two clusters, asked all the time: who has answered is in
# $WORK/CLUSTER/answers, line by line.
for name in east north; do
    # shellcheck disable=SC2016
    k $name -n shop exec deployment/client -c client -- busybox sh -c '
        while :; do
            answer=$(busybox timeout 5 busybox wget -q -O- http://orders 2>&1) || answer="failed: $answer"
            echo "$answer"
            busybox sleep 0.1
        done' >"$WORK/$name/answers" 2>/dev/null &
done

# only CLUSTER OTHER: has answered of late.
only() {
    local answers
    answers=$(tail -20 "$WORK/$1/answers" | sort | uniq -c)
    [[ $answers =~ ^\ +20\ orders\ of\ $2$ ]] || { echo "$1: $answers"; return 1; }
}
none() {
    [ -z "$(pods "$1" "$2")" ]
}
for name in east north; do
    eventually 20 only $name $name
done
step 'orders of both clusters: each answers its own'
for name in east north; do
    other=$([ $name = east ] && echo north || echo east)
    k $name -n shop scale deployment/orders --replicas 0 >/dev/null
    eventually 30 only $name "$other"
    eventually 20 says "orders of $other" calls west orders
    # Not even one that ends.
    eventually 40 none $name orders
    sleep 4
    only $name "$other" >"$WORK/last" || fail "$(cat "$WORK/last")"
    k $name -n shop scale deployment/orders --replicas 1 >/dev/null
    # A new endpoint starts slowly.
    eventually 40 only $name $name
    only "$other" "$other" >"$WORK/last" || fail "$(cat "$WORK/last")"
    answers=$(sort "$WORK/$name/answers" | uniq -c | sed 's/^ *//')
    [[ $answers != *failed* ]] || fail "$name: $answers $(k $name -n shop logs deployment/client -c isthmus-proxy | grep '"outbound"' | grep -v '"status":200' | tail -3)"
    step "no endpoint in $name for some time, then one again: ${answers//$'\n'/, }; none failed"
done

# Health checks by command: who runs them, what becomes of them, and what an
# agent in other hands can have run.
# shellcheck shell=bash

machine new trixie
machine old bookworm

# check MACHINE NAME CHECK: a service whose health is asked so.
check() {
    local dir=$WORK/$1/root/etc/isthmus/services.d
    mkdir -p "$dir"
    printf 'service: %s\nnamespace: shop\nport: 80\ntarget: 8080\ncheck: %s\n' "$2" "$3" >"$dir/$2.new"
    chmod 0644 "$dir/$2.new"
    mv "$dir/$2.new" "$dir/$2.yaml"
}

# health MACHINE NAME: what the agent said of it last.
health() {
    journal "$1" isthmus-vm-agent "INSTANCE=$2" | tail -1 | python3 -c '
import json, sys
said = json.load(sys.stdin)
print(said["MESSAGE"].split(" instance=")[0].split(" service=")[0].removeprefix("service is "), said.get("DETAIL", ""), sep=": ")'
}

# is MACHINE NAME HEALTH[: DETAIL]: within ten seconds.
is() {
    the_same() { [[ $(health "$1" "$2") == "$3"* ]] || { health "$1" "$2"; return 1; }; }
    eventually 10 the_same "$@"
}

# as MACHINE USER SAID [SECONDS]: what the door answers to a user within them; it
# may be nothing.
as() {
    # shellcheck disable=SC2016
    in_machine "$1" timeout "${4:-20}" setpriv --reuid="$2" --regid="$2" --clear-groups perl -MIO::Socket::UNIX -e '
        my $door = IO::Socket::UNIX->new(Peer => "/run/isthmus/check.sock") or die "no door: $!\n";
        print $door shift; $door->flush; local $/; print <$door>;' -- "$3" 2>&1
}

runs() {
    in_machine "$1" pgrep -f "$2" >/dev/null
}

runs_not() {
    ! runs "$@"
}

# shellcheck disable=SC2016
for name in new old; do
    root=$WORK/$name/root
    cat >"$root/usr/local/bin/slow" <<'SCRIPT'
#!/bin/sh
trap '' TERM
sleep 1001 &
setsid sleep 1002 &
sleep 1003
SCRIPT
    cat >"$root/usr/local/bin/left" <<'SCRIPT'
#!/bin/sh
for _ in $(seq 20); do sleep 1004 & done
echo "all of them"
exit 1
SCRIPT
    chmod 0755 "$root"/usr/local/bin/*
    # Where only games may look, and the door's own sandbox not.
    mkdir -m 0700 "$root/home/games"
    printf '#!/bin/sh\necho of its own\nexit 1\n' >"$root/home/games/check"
    chmod 0700 "$root/home/games/check"
    chown -R "$(grep ^games: "$root/etc/passwd" | cut -d: -f3)" "$root/home/games"
    check $name home '{ exec: [/home/games/check], user: games, timeout: 5s }'
    check $name good '{ exec: [/bin/true], interval: 1s, timeout: 5s }'
    check $name bad '{ exec: [/bin/sh, -c, "echo first; echo DISK CRITICAL; exit 2"], interval: 1s, timeout: 5s }'
    check $name flag '{ exec: [/usr/bin/test, -e, /srv/flag], interval: 1s, unhealthy: 1, timeout: 5s }'
    check $name who '{ exec: [/bin/sh, -c, "echo $(id -un) $ISTHMUS_PORT $ISTHMUS_SERVICE $ISTHMUS_INSTANCE; exit 1"], user: nobody, timeout: 5s }'
    check $name other '{ exec: [/bin/sh, -c, "id; exit 1"], timeout: 5s }'
    check $name root '{ exec: [/bin/sh, -c, "id -un; exit 1"], user: root, timeout: 5s }'
    check $name free '{ exec: [/bin/sh, -c, "touch /var/tmp/free && grep NoNewPrivs /proc/self/status; exit 1"], timeout: 5s }'
    check $name place '{ exec: [/bin/sh, -c, "tail -1 /proc/self/cgroup; exit 1"], timeout: 5s }'
    check $name literal '{ exec: [/bin/sh, -c, "echo \"$0\"; exit 1", "$PATH ${HOME} $$ %n"], timeout: 5s }'
    check $name slow '{ exec: [/usr/local/bin/slow], timeout: 2s, interval: 1h }'
    check $name left '{ exec: [/usr/local/bin/left], interval: 1h, timeout: 5s }'
    check $name term '{ exec: [/bin/sh, -c, "kill -TERM $$"], timeout: 5s }'
    check $name missing '{ exec: [/nowhere/check], timeout: 5s }'
    check $name nobodies '{ exec: [/bin/true], user: nosuch, timeout: 5s }'
    check $name long '{ exec: [/bin/sleep, "2001"], timeout: 1h, interval: 1h }'
    check $name well '{ exec: [/bin/true], interval: 1h, timeout: 5s }'
    check $name ill '{ exec: [/bin/false], interval: 1h, timeout: 5s }'
    check $name tcp '{ tcp: 22 }'
    check $name open '{ exec: [/bin/true], timeout: 5s }'
    chmod 0666 "$root/etc/isthmus/services.d/open.yaml"
done
boot new old
step "machines have booted"

checks() {
    local name=$1 services=$WORK/$1/root/etc/isthmus/services.d
    is "$name" good healthy
    is "$name" bad "unhealthy: status 2: DISK CRITICAL"
    is "$name" flag unhealthy
    in_machine "$name" touch /srv/flag
    is "$name" flag healthy
    in_machine "$name" rm /srv/flag
    is "$name" flag unhealthy
    step "$name: 0 is healthy, anything else is not, and that changes"

    is "$name" who "unhealthy: status 1: nobody 8080 who.shop who"
    is "$name" other "unhealthy: status 1: uid=$(in_machine "$name" id -u isthmus-check)(isthmus-check) gid=$(in_machine "$name" id -g isthmus-check)(isthmus-check) groups=$(in_machine "$name" id -g isthmus-check)(isthmus-check)"
    is "$name" root "unhealthy: status 1: root"
    is "$name" free "unhealthy: status 1: NoNewPrivs: 0"
    [[ $(health "$name" place) == *system.slice/isthmus-check-place.service ]] || fail "$name: $(health "$name" place)"
    # shellcheck disable=SC2016
    is "$name" literal 'unhealthy: status 1: $PATH ${HOME} $$ %n'
    is "$name" term "unhealthy: killed by SIGTERM"
    is "$name" missing "unhealthy: status 127: "
    is "$name" home "unhealthy: status 1: of its own"
    is "$name" nobodies "unhealthy: user nosuch: there is none"
    step "$name: each has the user and the words that are written, and a unit of its own"

    is "$name" slow "unhealthy: killed: not done within 2s"
    runs "$name" 'sleep 100[123]' && fail "$name: of what was killed something runs"
    is "$name" left "unhealthy: status 1: all of them"
    runs "$name" 'sleep 1004' && fail "$name: of what has ended something runs"
    step "$name: whose time is over is killed with all its children, and so are those of who has ended"

    eventually 10 runs "$name" 'sleep 2001'
    # What the kernel keeps where it may: machines of this ring have no controllers.
    [ "$(in_machine "$name" systemctl show isthmus-check-long -p User -p MemoryMax -p TasksMax --value | sort | xargs)" = "268435456 64 isthmus-check" ] ||
        fail "$name: $(in_machine "$name" systemctl show isthmus-check-long -p User -p MemoryMax -p TasksMax)"
    # Again, and it is not there twice; who has asked hangs up.
    as "$name" isthmus-agent $'long\n' 3 >"$WORK/$name/again" &
    sleep 1.5
    [ "$(in_machine "$name" pgrep -fc '^/bin/sleep 2001')" = 1 ] || fail "$name: not one, and not two: $(in_machine "$name" pgrep -fa 'sleep 2001')"
    wait $! || true
    eventually 10 runs_not "$name" 'sleep 2001'
    check "$name" long '{ exec: [/bin/sleep, "2001"], timeout: 59m, interval: 1h }'
    eventually 10 runs "$name" 'sleep 2001'
    rm "$services/long.yaml"
    eventually 10 runs_not "$name" 'sleep 2001'
    step "$name: nobody waits for it any more, and it ends"

    is "$name" open "unhealthy: /etc/isthmus/services.d/open.yaml: others than root can write it"
    in_machine "$name" chown isthmus-agent /etc/isthmus/services.d/good.yaml
    is "$name" good "unhealthy: /etc/isthmus/services.d/good.yaml: others than root can write it"
    in_machine "$name" chown root /etc/isthmus/services.d/good.yaml
    is "$name" good healthy
    in_machine "$name" chmod 0777 /etc/isthmus/services.d
    is "$name" good "unhealthy: /etc/isthmus/services.d: others than root can write it"
    in_machine "$name" chmod 0755 /etc/isthmus/services.d
    is "$name" good healthy
    step "$name: what others than root can write is not run"
    hostile "$name"
}

# In the place of the agent, and of others.
hostile() {
    local name=$1 said user
    said=$(as "$name" isthmus-agent $'ill\n')
    [ "$said" = $'failed\nstatus 1' ] || fail "$name: $said"
    said=$(as "$name" isthmus-agent $'well\n')
    [ "$said" = passed ] || fail "$name: $said"
    for said in tcp ../well well.yaml -well 'well --uid=root' '/bin/true' ''; do
        [[ $(as "$name" isthmus-agent "$said"$'\n') == failed$'\n'/etc/isthmus/services.d* ]] || fail "$name: $said: $(as "$name" isthmus-agent "$said"$'\n')"
    done
    [ -z "$(as "$name" isthmus-agent "$(printf 'a%.0s' {1..500})")" ] || fail "$name: a name without end is answered"
    for user in daemon isthmus-check isthmus-proxy isthmus-capture; do
        said=$(as "$name" $user $'well\n' || true)
        [ "$said" = "no door: Permission denied" ] || fail "$name: the door says to $user: $said"
    done
    step "$name: at the door nothing runs but what root has written, and it is the agent's alone"

    # Connections that say nothing.
    # shellcheck disable=SC2016
    in_machine "$name" setpriv --reuid=isthmus-agent --regid=isthmus-agent --clear-groups perl -MIO::Socket::UNIX -e '
        for (1..200) { push @all, IO::Socket::UNIX->new(Peer => "/run/isthmus/check.sock") } sleep 3' &
    local flood=$! many
    sleep 2
    many=$(in_machine "$name" systemctl list-units --plain --no-legend 'isthmus-check@*' | wc -l)
    { [ "$many" -gt 0 ] && [ "$many" -le 32 ]; } || fail "$name: $many at once"
    wait $flood
    is_answered() { [ "$(as "$name" isthmus-agent $'well\n')" = passed ]; }
    eventually 10 is_answered
    step "$name: of 200 connections $many were heard, and afterwards it is as before"

    in_machine "$name" systemctl stop isthmus-check.socket
    check "$name" late '{ exec: [/bin/true], interval: 1s }'
    is "$name" late "unhealthy: /run/isthmus/check.sock: No such file"
    in_machine "$name" systemctl start isthmus-check.socket
    is "$name" late healthy
    step "$name: without the door it says what is missing"
}

for name in new old; do
    install_packages $name isthmus-vm-agent
    checks $name
    rm "$WORK/$name"/root/etc/isthmus/services.d/*.yaml
    none_left() {
        [ "$(in_machine "$name" systemctl list-units --all --plain --no-legend 'isthmus-check*' 'system-isthmus*' | awk '{ print $1 }')" = isthmus-check.socket ]
    }
    eventually 15 none_left
    in_machine $name systemctl --failed --plain --no-legend | grep . && fail "$name: failed units"
    journalctl -q -D "$WORK/$name/root/var/log/journal" -o cat _PID=1 | grep 'isthmus-check[@-]' >"$WORK/$name/lines" || true
    grep -q 'isthmus-check@.*Failed' "$WORK/$name/lines" || fail "$name: what has failed is not in the journal"
    ! grep -iE 'start|finish|deactivat' "$WORK/$name/lines" || fail "$name: the journal has a line for each check"
    step "$name: no unit is left, and the journal is not full of them"
done

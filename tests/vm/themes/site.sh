# A site and three machines of it, and what operators do with machines. On a
# host whose cgroups are of both kinds.
# shellcheck shell=bash

# answered_since LINE MACHINE
answered_since() {
    tail -n "+$(($1 + 1))" "$WORK/answers" | grep "$2"
}

: >"$WORK/answers"
for name in control web1 web2 client; do
    machine $name bookworm legacy
done
add_application web1
add_application web2
boot control web1 web2 client
step "four machines have booted"

install_packages control isthmus-federation
site control
for name in web1 web2 client; do
    install_packages $name isthmus-vm-agent
    in_machine $name systemctl is-active --quiet isthmus-vm-agent isthmus-proxy || fail "$name: no units"
    join $name
done
eventually 20 backs web1 web2
eventually 20 request client
step "the machines have joined; $(request client)"

for name in control web1; do
    in_machine $name systemctl --no-pager --failed --plain --no-legend | grep . && fail "$name: failed units"
done
connected=$(journal web1 isthmus-vm-agent PRIORITY=5 SITE=west)
[[ $connected == *'"MESSAGE":"connected site=west '* ]] || fail "no fields in the journal: $(journal web1 isthmus-vm-agent)"
step "the journal has fields: $(grep -o '"\(SITE\|WAY\|PRIORITY\|TARGET\|SYSLOG_IDENTIFIER\)":"[^"]*"' <<<"$connected" | tr '\n' ' ')"

requests client &
traffic=$!
sleep 1
in_machine web1 systemctl restart isthmus-vm-agent
backs web1 web2 >"$WORK/last" || fail "an agent that restarts keeps its records: $(cat "$WORK/last")"
eventually 10 in_machine web1 curl -sf http://127.0.0.1:4140/ -H 'Host: web.shop' -o /dev/null
said=$(journal web1 isthmus-vm-agent)
[[ $said == *"stopping, and expected back"* && $said != *"the machine stops"* ]] || fail "restart: $said"
sleep 6
backs web1 web2 >"$WORK/last" || fail "records are lost after the time of leaving: $(cat "$WORK/last")"
none_failed "restarting an agent"
step "an agent was restarted: its records stayed, no request failed"

in_machine web1 systemctl kill --signal=KILL isthmus-vm-agent
eventually 10 in_machine web1 systemctl is-active --quiet isthmus-vm-agent
sleep 2
backs web1 web2 >"$WORK/last" || fail "an agent that was killed keeps its records: $(cat "$WORK/last")"
none_failed "killing an agent"
step "an agent was killed: it is back, nobody has noticed"

# reloaded MACHINE: its proxy is another process, and still the unit's.
reloaded() {
    local before
    before=$(main_pid "$1" isthmus-proxy)
    in_machine "$1" systemctl reload isthmus-proxy
    another_pid() {
        local after
        after=$(main_pid "$1" isthmus-proxy)
        [ "$after" != "$before" ] && [ "$after" != 0 ]
    }
    eventually 20 another_pid "$1"
    in_machine "$1" systemctl is-active --quiet isthmus-proxy || fail "$1: reloaded to death"
}
reloaded web1
reloaded client
sleep 1
none_failed "reloading proxies"
step "proxies were reloaded: new processes, no request failed"

replaced web1 isthmus-proxy systemctl restart isthmus-proxy
sleep 2
none_failed "restarting the proxy of one of two machines that serve"
step "a proxy was restarted: the other machine serves meanwhile, no request failed"

asked=$EPOCHREALTIME
in_machine web1 systemctl poweroff
until backs web2 >"$WORK/last"; do
    sleep 0.05
    [ -e "/proc/$(cat "$WORK/web1/nspawn")" ] || break
done
gone=$EPOCHREALTIME
ended web1
backs web2 >"$WORK/last" || fail "the machine is off and not deregistered: $(cat "$WORK/last")"
said=$(journal web1 isthmus-vm-agent)
[[ $said == *"the machine stops: every service is deregistered"* ]] || fail "poweroff: $said"
sleep 1
none_failed "powering a machine off"
step "a machine was powered off: deregistered after $(awk "BEGIN { print $gone - $asked }") s, no request failed"

boot web1
eventually 20 backs web1 web2
before=$(wc -l <"$WORK/answers")
eventually 20 answered_since "$before" web1
touch "$WORK/enough"
wait "$traffic"
none_failed "booting a machine"
step "it booted and serves again without a token; $(wc -l <"$WORK/answers") requests, none failed"

printf '\nstat: /tmp\n' >>"$WORK/client/root/etc/isthmus/agent.yaml"
if in_machine client systemctl restart isthmus-vm-agent 2>"$WORK/last"; then fail "it started with a wrong configuration"; fi
sleep 2
shown=$(in_machine client systemctl show isthmus-vm-agent -p ActiveState -p ExecMainStatus -p NRestarts | sort | xargs)
[ "$shown" = "ActiveState=failed ExecMainStatus=78 NRestarts=0" ] || fail "a wrong configuration: $shown"
said=$(journal client isthmus-vm-agent)
[[ $said == *agent.yaml:*":1: "*"did you mean \`state\`?"* ]] || fail "a wrong configuration: $said"
request client >/dev/null || fail "the proxy needs the agent"
step "a wrong configuration is named, and not tried again and again; the proxy goes on"

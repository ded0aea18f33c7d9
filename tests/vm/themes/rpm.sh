# The .rpm, by dnf from our yum repository. No Fedora is booted: these are
# Debians with rpm and dnf, and packages without files that say what of Debian's
# own a Fedora would have as packages.
# shellcheck shell=bash

# provide NAME CAPABILITY…: a package that says so.
provide() {
    printf 'Name: %s\nVersion: 1\nRelease: 1\nSummary: of Debian\nLicense: none\n' "$1" >"$WORK/provided.spec"
    printf 'Provides: %s\n' "${@:2}" >>"$WORK/provided.spec"
    printf '%%description\nOf Debian.\n%%files\n' >>"$WORK/provided.spec"
    rpmbuild -bb --quiet --define "_topdir $WORK/provided" "$WORK/provided.spec" >"$WORK/last" 2>&1 || fail "$(cat "$WORK/last")"
}

# libraries ROOT NAME…: what of them programs may need, as rpm reads it there.
libraries() {
    local root=$1 name
    for name in "${@:2}"; do
        find "$root"/usr/lib/*-linux-gnu -name "$name"
    done | /usr/lib/rpm/elfdeps --provides
}

# dnf MACHINE COMMAND…: from our repository and no other. A scriptlet that fails
# is for dnf a warning.
dnf() {
    in_machine "$1" env LC_ALL=C.UTF-8 dnf -y "${@:2}" >"$WORK/dnf" 2>&1 || { tail -20 "$WORK/dnf"; return 1; }
    ! grep -i 'scriptlet failed' "$WORK/dnf" || { tail -20 "$WORK/dnf"; return 1; }
}

must_dnf() {
    dnf "$@" >"$WORK/last" 2>&1 || fail "dnf $*: $(cat "$WORK/last")"
}

# state MACHINE UNIT: of those that run and those that start at boot.
state() {
    in_machine "$1" systemctl show "$2" -p ActiveState -p UnitFileState --value | xargs
}

is() {
    [ "$(state "$1" "$2")" = "$3" ] || fail "$1: $2 is $(state "$1" "$2"), not $3"
}

# since MACHINE UNIT: when it was started, which a reload does not change.
since() {
    in_machine "$1" systemctl show "$2" -p ActiveEnterTimestampMonotonic --value
}

# files MACHINE: all, but for what dnf and systemd keep about themselves.
files() {
    in_machine "$1" find /etc /opt /usr /var/lib -xdev \( -path /var/lib/rpm -o -path /var/lib/dnf \
        -o -path /var/lib/systemd \) -prune -o -print | sort
}

# unowned MACHINE: those that came and are no package's, but for users and state.
unowned() {
    files "$1" | comm -13 "$WORK/$1/before" - | in_machine "$1" sh -c \
        'while read -r path; do rpm -qf "$path" >/dev/null 2>&1 || echo "$path"; done' |
        grep -vE '^/etc/((passwd|group|shadow|gshadow)-|\.pwd\.lock)$|^/var/lib/isthmus(/|$)' | xargs
}

# brings VERSION MACHINE UNIT COMMAND…: dnf brings another version, and what
# carries traffic is a successor of what did before: it was not stopped.
brings() {
    local version=$1 machine=$2 unit=$3 before from
    before=$(main_pid "$machine" "$unit")
    from=$(since "$machine" "$unit")
    must_dnf "$machine" "${@:4}"
    is_another() {
        local after
        after=$(main_pid "$machine" "$unit")
        [ "$after" != "$before" ] && [ "$after" != 0 ]
    }
    eventually 30 is_another
    [ "$(since "$machine" "$unit")" = "$from" ] || fail "$machine: $unit was started again"
    [ "$(in_machine "$machine" rpm -q --qf '%{version}' isthmus-proxy)" = "$version" ] || fail "$machine: not $version"
    runs "$machine" "$unit" edge-proxy
}

# runs MACHINE UNIT PROGRAM: as it is installed now.
runs() {
    in_machine "$1" sh -c 'cmp "/usr/bin/$0" "/proc/$1/exe"' "$3" "$(main_pid "$1" "$2")" >"$WORK/last" 2>&1 ||
        fail "$1: $2 runs another program: $(cat "$WORK/last")"
}

machine control rpm
machine host rpm
# Whom the host calls has the .deb.
machine web bookworm
add_application web
NEW=$(rpm -qp --nosignature --qf '%{version}\n' "$REPO"/yum/isthmus-cli-*.rpm | grep -vxF "$OLD")
mapfile -t glibc < <(libraries "$WORK/host/root" libc.so.6 libm.so.6 'ld-linux-*.so.*')
mapfile -t libgcc < <(libraries "$WORK/host/root" libgcc_s.so.1)
provide glibc 'rtld(GNU_HASH)' "${glibc[@]}"
provide libgcc "${libgcc[@]}"
provide systemd systemd-units
provide bash /bin/sh
for name in control host; do
    root=$WORK/$name/root
    cp "$WORK"/provided/RPMS/*/*.rpm "$root/root/"
    mkdir -p "$root"/etc/{rpm,yum.repos.d,systemd/system-preset} "$root/usr/share/licenses"
    echo '%_dbpath /var/lib/rpm' >"$root/etc/rpm/macros"
    # As Fedora has it: nothing is enabled that no preset names, and dnf misses
    # what it cannot read.
    echo 'disable *' >"$root/etc/systemd/system-preset/99-default-disable.preset"
    printf '[main]\ngpgcheck=1\nbest=True\nclean_requirements_on_remove=True\nskip_if_unavailable=False\n' >"$root/etc/dnf/dnf.conf"
    cat >"$root/etc/yum.repos.d/isthmus.repo" <<'YUM'
[isthmus]
name=Isthmus
baseurl=file:///srv/isthmus/yum
gpgkey=file:///srv/isthmus/isthmus.asc
gpgcheck=1
repo_gpgcheck=1
YUM
done
# An operator who wants no proxy where the control plane is.
echo 'disable isthmus-proxy.service' >"$WORK/control/root/etc/systemd/system-preset/10-site.preset"
boot control host web
for name in control host; do
    in_machine $name sh -c 'rpm -i --nosignature /root/*.rpm' >"$WORK/last" 2>&1 || fail "$name: $(cat "$WORK/last")"
    files $name >"$WORK/$name/before"
done
step "machines have booted, $OLD and $NEW are there"

must_dnf control install "isthmus-federation-$OLD"
took=$(seconds_of dnf host install "isthmus-vm-agent-$OLD")
within 10 "$took" "install to running"
is host isthmus-proxy "active enabled"
is host isthmus-vm-agent "active enabled"
is host isthmus-gateway "inactive enabled"
is control isthmus-federation "inactive enabled"
is control isthmus-gateway "inactive enabled"
is control isthmus-proxy "inactive disabled"
in_machine host id isthmus-agent isthmus-proxy isthmus-gateway >"$WORK/last" 2>&1 || fail "no users: $(cat "$WORK/last")"
in_machine control id isthmus-federation >"$WORK/last" 2>&1 || fail "no user: $(cat "$WORK/last")"
[ "$(in_machine host stat -c '%a %U %G' /run/isthmus)" = "1775 root isthmus" ] || fail "no /run/isthmus"
wants=/etc/systemd/system/multi-user.target.wants
[ "$(unowned host)" = "$(echo $wants/isthmus-{gateway,proxy,vm-agent}.service)" ] || fail "no package's: $(unowned host)"
[ "$(unowned control)" = "$(echo $wants/isthmus-{federation,gateway}.service)" ] || fail "no package's: $(unowned control)"
in_machine host sh -c 'rpm -V $(rpm -qa "isthmus-*")' >"$WORK/last" || fail "not as packed: $(cat "$WORK/last")"
step "dnf install to running units: $took s; users, presets, every file is a package's"

install_packages web isthmus-vm-agent
site control
join web
join host
eventually 20 request host
requests host &
traffic=$!
echo '# of an operator' >>"$WORK/host/root/etc/isthmus/proxy.yaml"
agent=$(main_pid host isthmus-vm-agent)
brings "$NEW" host isthmus-proxy upgrade isthmus-vm-agent
[ "$(main_pid host isthmus-vm-agent)" != "$agent" ] || fail "the agent was not started again"
runs host isthmus-vm-agent vm-agent
in_machine host id isthmus-capture isthmus-dns isthmus-check >"$WORK/last" 2>&1 || fail "no users: $(cat "$WORK/last")"
is host isthmus-check.socket "active static"
is host isthmus-capture "active enabled"
is host isthmus-dns "active enabled"
resolved=/etc/systemd/system/systemd-resolved.service.wants
[ "$(unowned host)" = "$(echo /etc/isthmus/proxy.yaml.rpmnew $wants/isthmus-{{capture,dns,gateway,proxy}.service,resolved.path,vm-agent.service} $resolved{,/isthmus-resolved.service})" ] || fail "no package's: $(unowned host)"
changed=$(in_machine host sh -c 'rpm -V $(rpm -qa "isthmus-*")' || true)
[[ $changed == S*" c /etc/isthmus/proxy.yaml" ]] || fail "a configuration was replaced, or more: $changed"
none_failed "dnf upgrade"
step "dnf upgrade: a successor of the proxy, what is new runs, configuration is kept; no request failed"

brings "$OLD" host isthmus-proxy downgrade isthmus-{vm-agent,proxy,cli}-"$OLD"
touch "$WORK/enough"
wait "$traffic"
none_failed "dnf downgrade"
step "dnf downgrade: the same; $(wc -l <"$WORK/answers") requests, none failed"

# Without requests: a federation that has just started does not know who is at a
# gateway that has just been replaced, and says that nobody is.
brings "$NEW" control isthmus-gateway upgrade
runs control isthmus-federation federation
is control isthmus-proxy "inactive disabled"
eventually 20 request host
step "dnf upgrade of the control plane: a successor of the gateway, and requests are answered"

# Somebody else's packages under our name, and their index.
mkdir "$WORK/others"
cp "$REPO"/yum/*-"$NEW"-*.rpm "$WORK/others/"
packaging/repo "$WORK/others" "$WORK/host/root/srv/other"
for check in 1 0; do
    ! dnf host --setopt=isthmus.{baseurl=file:///srv/other/yum,repo_gpgcheck=$check} upgrade >"$WORK/last" ||
        fail "it takes what others have signed: $(cat "$WORK/dnf")"
    grep -qE 'GPG signature verification error|GPG check FAILED' "$WORK/dnf" || fail "refused: $(cat "$WORK/dnf")"
done
step "an index and a package that others have signed are refused"

in_machine host systemctl stop isthmus-vm-agent isthmus-proxy
must_dnf host upgrade
is host isthmus-proxy "inactive enabled"
is host isthmus-vm-agent "inactive enabled"
in_machine host systemctl start isthmus-vm-agent isthmus-proxy
step "dnf upgrade starts nothing that was stopped"

# What capture leaves in the kernel, and would with its units stopped.
in_machine host nft add table inet isthmus
must_dnf host remove isthmus-vm-agent
in_machine host nft list tables | grep -q isthmus && fail "our table is left"
in_machine host rpm -qa 'isthmus-*' | grep . && fail "is still there"
for unit in isthmus-proxy isthmus-gateway isthmus-vm-agent isthmus-check.socket isthmus-capture isthmus-dns; do
    is host $unit "inactive"
done
left=$(files host | comm -13 "$WORK/host/before" - | grep -v '^/var/lib/isthmus/' | xargs)
[ "$left" = "$(echo /etc/isthmus{,/proxy.yaml.rpm{new,save}} /var/lib/isthmus)" ] || fail "left: $left"
lost=$(files host | comm -23 "$WORK/host/before" -)
[ -z "$lost" ] || fail "lost: $lost"
in_machine host test ! -e /run/isthmus || fail "left: /run/isthmus"
in_machine host id isthmus-agent >"$WORK/last" 2>&1 || fail "the number of a user may become another's"
step "dnf remove: nothing runs; state, a changed configuration and users are left"

must_dnf host install isthmus-vm-agent
is host isthmus-vm-agent "active enabled"
eventually 20 request host
step "installed again: it is still the machine that has joined"

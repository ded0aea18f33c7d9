# What there is to install, whatever the format; read by build.
# shellcheck shell=bash disable=SC2034

PACKAGES=(isthmus-proxy isthmus-vm-agent isthmus-federation isthmus-cli)

# about PACKAGE: says what it is.
#   PROGRAM  what it runs
#   UNITS    what it starts
#   BESIDE   units that these start, or a person
#   UPGRADE  what becomes of units that run: reload leaves every connection alone
#   NEEDS    other packages, of the same version
#   WANTS    what it is better with, in Debian's words
#   STATE    what a purge removes
#   RUN      what a removal does: processes leave their sockets there
#   BEFORE_REMOVAL  commands, in one line, that take out what its units leave in the kernel
about() {
    UNITS=() BESIDE=() NEEDS=() WANTS='' STATE=() RUN=() UPGRADE=restart SECTION=8 BEFORE_REMOVAL=:
    case $1 in
    isthmus-proxy)
        PROGRAM=edge-proxy UPGRADE=reload
        UNITS=(isthmus-proxy.service isthmus-gateway.service)
        RUN=(/run/isthmus)
        STATE=(/var/lib/isthmus/proxy /var/lib/isthmus/gateway /etc/isthmus/gateway.yaml)
        SUMMARY="proxy and gateway of the Isthmus mesh"
        TEXT="The data plane: it carries the traffic of this machine's applications over
mutual TLS, and as a gateway that of a whole site."
        ;;
    isthmus-vm-agent)
        PROGRAM=vm-agent
        UNITS=(isthmus-vm-agent.service isthmus-dns.service isthmus-resolved.path isthmus-resolved.service
            isthmus-capture.service)
        BESIDE=(isthmus-check.socket isthmus-check@.service isthmus-migrate.service isthmus-front@.service)
        NEEDS=(isthmus-proxy isthmus-cli)
        # Over it the agent asks systemd whether the machine stops.
        # With nft it captures.
        WANTS="default-dbus-system-bus | dbus-system-bus, nftables"
        RUN=(/run/isthmus/agent.sock /run/isthmus/identity.sock /run/isthmus/capture.sock /run/isthmus/migrate.sock
            /run/isthmus/link)
        STATE=(/var/lib/isthmus/agent /var/lib/isthmus/capture /var/lib/isthmus/migrate /etc/isthmus/services.d)
        BEFORE_REMOVAL='nft delete table inet isthmus 2>/dev/null || true; vm-agent capture --remove || true; vm-agent migrate --remove || true'
        SUMMARY="agent that makes a machine part of an Isthmus mesh"
        TEXT="Owns the identity of this machine, registers its services and checks their
health. One command joins a site: meshctl join."
        ;;
    isthmus-federation)
        PROGRAM=federation
        UNITS=(isthmus-federation.service)
        NEEDS=(isthmus-proxy isthmus-cli)
        RUN=(/run/isthmus/federation.sock /run/isthmus/gateway-identity.sock)
        STATE=(/var/lib/isthmus/federation /etc/isthmus/federation.yaml)
        SUMMARY="control plane of a site of the Isthmus mesh"
        TEXT="Identity CA, registry, discovery and links of one site; its gateway is in
isthmus-proxy. One command makes a site: meshctl site init."
        ;;
    isthmus-cli)
        PROGRAM=meshctl SECTION=1
        SUMMARY="command line of the Isthmus mesh"
        TEXT="Explains and changes a mesh: makes sites, joins machines, links sites, and
shows what runs between them and why."
        ;;
    *) return 1 ;;
    esac
}

# lay PACKAGE ROOT: puts under ROOT what it installs, but for what is each
# format's own. PROGRAMS, PAGES and ZSH say where things are.
lay() {
    local package=$1 root=$2 unit page
    about "$package"
    install -D -m 0755 "$PROGRAMS/$PROGRAM" "$root/usr/bin/$PROGRAM"
    "${STRIP:-strip}" --strip-unneeded --remove-section=.comment "$root/usr/bin/$PROGRAM"
    for unit in "${UNITS[@]}" "${BESIDE[@]}"; do
        install -D -m 0644 "common/systemd/$unit" "$root/usr/lib/systemd/system/$unit"
    done
    for kind in sysusers tmpfiles; do
        [ ! -e "common/$kind.d/$package.conf" ] ||
            install -D -m 0644 "common/$kind.d/$package.conf" "$root/usr/lib/$kind.d/$package.conf"
    done
    for page in "$PAGES/man/$PROGRAM".* "$PAGES/man/$PROGRAM"-*; do
        [ -e "$page" ] || continue
        install -D -m 0644 "$page" "$root/usr/share/man/man$SECTION/${page##*/}"
        gzip -9n "$root/usr/share/man/man$SECTION/${page##*/}"
    done
    case $package in
    isthmus-proxy)
        install -D -m 0644 common/etc/proxy.yaml "$root/etc/isthmus/proxy.yaml"
        install -D -m 0644 ../docs/configuration.md "$root/usr/share/doc/$package/configuration.md"
        ;;
    isthmus-vm-agent)
        install -D -m 0644 common/etc/agent.yaml "$root/etc/isthmus/agent.yaml"
        install -D -m 0644 common/etc/capture.yaml "$root/etc/isthmus/capture.yaml"
        install -d -m 0755 "$root/etc/isthmus/services.d"
        # Not below /usr/lib: on Debian 12 that directory is nobody's, and dpkg
        # warns when it cannot remove it.
        install -D -m 0644 common/etc/isthmus-vm-agent.network "$root/etc/systemd/network/00-isthmus-vm-agent.network"
        ;;
    esac
    # Each program's, beside it.
    install -D -m 0644 "$PAGES/completions/$PROGRAM.bash" \
        "$root/usr/share/bash-completion/completions/$PROGRAM"
    install -D -m 0644 "$PAGES/completions/_$PROGRAM" "$root/$ZSH/_$PROGRAM"
    install -D -m 0644 "$PAGES/completions/$PROGRAM.fish" \
        "$root/usr/share/fish/vendor_completions.d/$PROGRAM.fish"
}

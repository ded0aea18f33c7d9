# Images of our programs: from scratch, as users of their own, and the same bytes
# for the same programs.
# shellcheck shell=bash

mapfile -t ours < <(basename -s .tar "$IMAGES"/isthmus-*.tar)
k8s/images/build --programs "$PROGRAMS" --out "$WORK/again" --registry isthmus.example --tag 1 "${ours[@]}" >"$WORK/last"
for archive in "$WORK"/again/*.tar; do
    cmp "$archive" "$IMAGES/${archive##*/}" || fail 'another image of the same programs'
done
step "the same twice: $(tr '\n' ';' <"$WORK/last")"

# of ARCHIVE FILTER: from its configuration.
of() {
    local config
    config=$(tar -xOf "$1" manifest.json | jq -r '.[0].Config')
    tar -xOf "$1" "$config" | jq -r "$2"
}

for archive in "$WORK"/again/*.tar; do
    user=$(of "$archive" .config.User)
    [[ $user =~ ^[1-9][0-9]+:[1-9][0-9]+$ ]] || fail "${archive##*/} runs as ${user:-root}"
    rm -rf "$WORK/image" && mkdir "$WORK/image"
    tar -xOf "$archive" "$(tar -xOf "$archive" manifest.json | jq -r '.[0].Layers[0]')" | tar -xz -C "$WORK/image"
    for program in "$WORK"/image/usr/bin/*; do
        said=$(chroot --userspec="$user" "$WORK/image" "/usr/bin/${program##*/}" --version 2>&1) ||
            fail "${program##*/} of ${archive##*/}: $said"
    done
    [ -z "$(find "$WORK/image" -perm /6022 ! -type l)" ] || fail "${archive##*/}: somebody else may write there"
    [ -z "$(find "$WORK/image" -name '*sh' -path '*bin/*')" ] || fail "${archive##*/} has a shell"
done
step 'every program runs with what its image has'

# Another architecture is that of the programs, whatever builds them.
cc -static -Os -s -o "$WORK/edge-proxy" tests/k8s/images/pause.c
printf '\xb7\0' | dd of="$WORK/edge-proxy" bs=1 seek=18 conv=notrunc status=none
printf '#!/bin/sh\ncp "$3" "$2"\n' >"$WORK/strip" && chmod +x "$WORK/strip"
STRIP=$WORK/strip k8s/images/build --programs "$WORK" --out "$WORK/other" isthmus-proxy >"$WORK/last"
[ "$(of "$WORK/other/isthmus-proxy.tar" .architecture)" = arm64 ] || fail "not of arm64: $(cat "$WORK/last")"
head -c 30M /dev/urandom >>"$WORK/edge-proxy"
STRIP=$WORK/strip k8s/images/build --programs "$WORK" --out "$WORK/other" isthmus-proxy >"$WORK/last" 2>&1 &&
    fail 'an image of 30 MiB is taken'
grep -q 'more than 25 MiB' "$WORK/last" || fail "$(cat "$WORK/last")"
step 'arm64 is told by programs, and a large image refused'

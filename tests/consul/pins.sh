# Where setup puts what it builds, and what run looks for. Another pin, another place.
# shellcheck shell=bash disable=SC2034
BIN=${XDG_CACHE_HOME:-$HOME/.cache}/isthmus-consul/$(cat "${BASH_SOURCE%/*}"/peer/{go.mod,go.sum} | sha256sum | cut -c1-12)/bin

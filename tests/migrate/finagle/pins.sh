# Where setup puts what it installs, and what run looks for. Another pin, another place.
# shellcheck shell=bash disable=SC2034
FINAGLE=${XDG_CACHE_HOME:-$HOME/.cache}/isthmus-finagle/$(cat "${BASH_SOURCE%/*}"/{pom.xml,Delegate.java,Router.java} | sha256sum | cut -c1-12)

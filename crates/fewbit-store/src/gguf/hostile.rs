//! Files that mean harm: each is refused with one sentence, before anything large is allocated.

use proptest::prelude::*;

use super::parse::parse;

fn text(t: &str) -> Vec<u8> {
    [&(t.len() as u64).to_le_bytes()[..], t.as_bytes()].concat()
}

fn header(tensors: u64, keys: u64) -> Vec<u8> {
    [b"GGUF".to_vec(), 3u32.to_le_bytes().into(), tensors.to_le_bytes().into(), keys.to_le_bytes().into()].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// One key with a value.
fn key(value: &[Vec<u8>]) -> Vec<u8> {
    [header(0, 1), text("a"), value.concat()].concat()
}

/// One tensor after its name.
fn tensor(rest: &[Vec<u8>]) -> Vec<u8> {
    [header(1, 0), text("t"), rest.concat()].concat()
}

fn refusal(bytes: Vec<u8>) -> String {
    parse(&bytes.into()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn counts_and_lengths() {
    let says = |bytes, wanted: &str| {
        let e = refusal(bytes);
        assert!(e.contains(wanted), "{e}");
    };
    says(header(0, 1 << 60), "says that it holds 1152921504606846976 keys");
    says(header(1 << 62, 0), "says that it holds 4611686018427387904 tensors");
    says([header(0, 1), longs(&[(1 << 63) - 1]), vec![0; 16]].concat(), "9223372036854775807 bytes of a text");
    says(key(&[words(&[9, 0]), longs(&[1 << 50])]), "key `a`: says that it holds 1125899906842624 numbers");
    says(key(&[words(&[9, 12]), longs(&[u64::MAX])]), "18446744073709551615 numbers");
    says(key(&[words(&[9, 8]), longs(&[1 << 40]), vec![0; 64]]), "1099511627776 texts");
    let nested = [words(&[9]), longs(&[1])].concat().repeat(100_000);
    says(key(&[words(&[9]), nested]), "key `a`: is a list of lists");
    says(key(&[words(&[77])]), "key `a`: has the unknown type 77");
    says(key(&[words(&[7]), vec![7]]), "key `a`: holds the boolean 7");
    says(key(&[words(&[8]), longs(&[1]), vec![0xff]]), "key `a`: holds a text that is not UTF-8");
    says(tensor(&[words(&[u32::MAX]), longs(&[0; 2])]), "tensor `t`: has 4294967295 dimensions");
    says(
        tensor(&[words(&[4]), longs(&[(1 << 63) - 1, 2, 2, 1]), words(&[0]), longs(&[0])]),
        "tensor `t`: has shape [1, 2, 2, 9223372036854775807] of F32, more bytes",
    );
    says(tensor(&[words(&[2]), longs(&[32, 0]), words(&[0]), longs(&[0])]), "tensor `t`: has a size of zero");
    says(tensor(&[words(&[1]), longs(&[32]), words(&[999]), longs(&[0])]), "tensor `t`: has the unknown type 999");
    says(
        tensor(&[words(&[1]), longs(&[33]), words(&[8]), longs(&[0])]),
        "has rows of 33, no multiple of the 32 weights of a Q8_0 block",
    );
    says(tensor(&[words(&[1]), longs(&[32]), words(&[0]), longs(&[1 << 62])]), "its header describes");
    says(tensor(&[words(&[1]), longs(&[32]), words(&[0]), longs(&[u64::MAX - 31])]), "tensor `t`: lies at offset");
    says(tensor(&[words(&[1]), longs(&[32]), words(&[0]), longs(&[8])]), "offset 8, no multiple of 32");
    says(b"GGUX".repeat(16), "does not begin with `GGUF`");
    says(Vec::new(), "is empty");
    says(b"GGUF\x01\0\0\0".repeat(4), "is GGUF version 1, where versions 2 and 3 are read");
    says(b"GGUF\0\0\0\x03".repeat(4), "is a big-endian GGUF (version 3)");
    says(header(0, 1)[..20].to_vec(), "the file ends at byte 20, inside its header");
}

#[test]
fn alignments() {
    let file = |kind: u32, n: u64| {
        let value = longs(&[n])[..if kind == 10 { 8 } else { 4 }].to_vec();
        let tensor = [text("t"), words(&[1]), longs(&[2]), words(&[0]), longs(&[0])].concat();
        let head = [header(1, 1), text("general.alignment"), words(&[kind]), value, tensor].concat();
        let end = head.len().next_multiple_of(64) + 8;
        let mut file = head;
        file.resize(end, 0);
        parse(&file.into()).map(|p| p.tensors[0].range.start % 64).map_err(|e| e.to_string())
    };
    assert_eq!(file(4, 64), Ok(0));
    assert_eq!(file(5, 64), Ok(0), "any whole number will do");
    assert_eq!(file(10, 64), Ok(0));
    for bad in [0, 3, 1 << 30] {
        let e = file(4, bad).unwrap_err();
        assert!(e.contains(&format!("key `general.alignment` is the number {bad}, where a power of two")), "{e}");
    }
}

#[test]
fn overlaps_and_twins() {
    let two = |a: &str, b: &str, offset: u64| {
        let one = |name: &str, at| [text(name), words(&[1]), longs(&[16]), words(&[0]), longs(&[at])].concat();
        let mut file = [header(2, 0), one(a, 0), one(b, offset)].concat();
        file.resize(512, 0);
        parse(&file.into()).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(two("a", "b", 64), Ok(()));
    assert_eq!(two("a", "b", 128), Ok(()), "a gap harms nobody");
    assert_eq!(two("a", "b", 32).unwrap_err(), "tensor `b`: overlaps `a`; the file is damaged: download it again");
    assert_eq!(
        two("a", "a", 64).unwrap_err(),
        "tensor `a`: the name occurs twice; the file is damaged: download it again"
    );
    let twice = [header(0, 2), text("k"), words(&[0]), vec![1], text("k"), words(&[0]), vec![2]].concat();
    assert!(refusal(twice).starts_with("key `k` occurs twice"));
}

/// A sound file with values of all kinds and two tensors.
fn sound() -> Vec<u8> {
    let keys = [
        [text("general.alignment"), words(&[4, 32])].concat(),
        [text("s"), words(&[8]), text("text")].concat(),
        [text("l"), words(&[9, 8]), longs(&[2]), text("a"), text("b")].concat(),
        [text("n"), words(&[9, 5]), longs(&[3]), words(&[1, 2, 3])].concat(),
        [text("b"), words(&[7]), vec![1]].concat(),
    ];
    let tensors = [
        [text("w"), words(&[2]), longs(&[32, 2]), words(&[8]), longs(&[0])].concat(),
        [text("v"), words(&[1]), longs(&[4]), words(&[0]), longs(&[96])].concat(),
    ];
    let mut file = [header(2, 5), keys.concat(), tensors.concat()].concat();
    file.resize(file.len().next_multiple_of(32) + 96 + 16, 0);
    file
}

#[test]
fn a_truncated_file_says_both_lengths() {
    let sound = sound();
    assert!(parse(&sound.clone().into()).is_ok());
    let length = sound.len();
    let e = refusal(sound[..length - 1].to_vec());
    assert!(e.starts_with(&format!("is {} bytes long, but its header describes {length}", length - 1)), "{e}");
}

proptest! {
    #[test]
    fn mutations_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index) {
        let mut file = sound();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        let cut = cut.index(file.len());
        let _ = parse(&file[..cut].to_vec().into());
        let _ = parse(&file.into());
    }
}

use crate::tokenizer::{Special, Tokenizer};

/// Texts on which tokenizers that only look alike differ: languages, code, runs of spaces, emoji, a story.
const SAMPLES: &[&str] = &[
    "",
    " ",
    "  leading and trailing  ",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a \
     big, red ball. \"Can I play with it?\" she asked. Her mom smiled and said, \"Yes, but be careful!\"\n\nThey \
     lived happily ever after.",
    "I'm sure they'll say it's what WE'RE after; HE'S don't y'all'd've?",
    "In 1987 it cost $1,234,567.89 (≈ 3.5 %), i.e. 0x1F600 or 10^-6; 12345678901234567890.",
    "fn main() {\n    let x: Vec<u8> = vec![0; 16];\n\tif x.len() >= 3 && !x.is_empty() {\n\t\tprintln!(\"{:?}\", x);\n\t}\n}\r\n",
    "def f(x):\n    return {\n        'a': [1, 2, 3],\n    }\n\n\n\n# ---- ==== ____ ////\n",
    "a\tb\t\tc\n\nd\n\n\n\n e  f   g    h     i                 j",
    "Größe, naïveté, œuvre, Ærøskøbing, mañana, façade, İstanbul, žluťoučký kůň, Łódź",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ελληνικά: ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体。日本語のテキスト、カタカナ。한국어 문장입니다.",
    "שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก",
    "🙂 👩‍👩‍👧‍👦 🇫🇷 ✅ 🏳️‍🌈 e\u{301} \u{200b}\u{feff}\u{a0}\u{2003}|\u{0}\u{7f}",
    "<s> </s> <|endoftext|> <|im_start|>user\n[INST] <unk> <0x0A> ▁ Ġ Ċ",
    "https://example.org/a_b-c?d=e&f=%20#g user@example.org C:\\dir\\file.txt",
];

/// Encodes sample texts with both tokenizers and returns the first whose ids differ.
///
/// Every text is tried as it is, with the model's own rule for BOS, and with control tokens recognised.
pub fn check_round_trip(a: &Tokenizer, b: &Tokenizer) -> Option<String> {
    let differs = |text: &&&str| {
        [Special::PlainWithBos, Special::Parsed].iter().any(|&s| match (a.encode(text, s), b.encode(text, s)) {
            (Ok(x), Ok(y)) => x != y,
            _ => true,
        })
    };
    SAMPLES.iter().find(differs).map(|text| (*text).to_owned())
}

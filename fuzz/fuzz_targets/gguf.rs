#![no_main]

// Panics of the tokenizers library that fewbit catches are no findings: the default hook would end the process.
// A panic that nobody catches still does.
libfuzzer_sys::fuzz_target!(
    init: { std::panic::set_hook(Box::new(|info| eprintln!("{info}"))); },
    |data: &[u8]| fewbit_fuzz::gguf(data)
);

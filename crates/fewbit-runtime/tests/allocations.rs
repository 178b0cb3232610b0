//! A token allocates nothing: counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, ModelCache, Runtime, Sampler, Sampling, Seen};
use fewbit_store::{LoraAdapter, ModelFile};

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_token_allocates_nothing() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests");
    for (family, has_adapter) in
        [("llama", false), ("qwen3", false), ("gemma3", false), ("gpt_neox", false), ("phi3", true)]
    {
        let mut file = ModelFile::open(&tests.join("families").join(family)).unwrap();
        if has_adapter {
            file.attach(&LoraAdapter::open(&tests.join("adapters").join(family)).unwrap(), 1.0).unwrap();
        }
        // One thread: others have buffers of their own, which they make when they first take part.
        let team = Arc::new(Team::new(1));
        let runtime = Runtime::load(&file, Arithmetic::Fast, team).unwrap();
        let mut cache = ModelCache::new(&runtime, 16);
        let mut logits = Vec::new();
        for position in 0..8 {
            let before = CALLS.load(Relaxed);
            runtime.write_logits(&Batch::one(position, 1), &[5], Some(&mut [&mut cache]), &[0], &mut logits).unwrap();
            let made = CALLS.load(Relaxed) - before;
            // The first tokens make the buffers.
            assert!(position < 3 || made == 0, "{family}: {made} at position {position}");
        }
    }
    // Again with the buffers that the first choice made.
    let logits: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
    let (mut row, mut seen) = (logits.clone(), Seen::default());
    (0..400).for_each(|id| seen.push(id * 3));
    let base = Sampling { temperature: 0.9, repetition_penalty: 1.1, ..Sampling::default() };
    for settings in
        [base, Sampling { top_k: 40, ..base }, Sampling { top_p: 0.9, ..base }, Sampling { min_p: 0.1, ..base }]
    {
        let mut sampler = Sampler::new(settings).unwrap();
        let mut made = [0; 2];
        for made in &mut made {
            row.copy_from_slice(&logits);
            let before = CALLS.load(Relaxed);
            sampler.choose(&mut row, &seen);
            *made = CALLS.load(Relaxed) - before;
        }
        assert!(made[0] > 0 && made[1] == 0, "{settings:?}: {made:?}");
    }
}

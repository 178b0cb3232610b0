//! Logits of tiny random checkpoints of every family against those of transformers.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_graph::{Graph, Op};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Linears, ModelCache, Runtime};
use fewbit_store::{ModelFile, Safetensors};

fn families() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families");
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    assert!(all.len() >= 20, "{all:?}");
    all
}

fn load(folder: &Path, arithmetic: Arithmetic, threads: usize) -> Runtime {
    load_for(folder, 0, arithmetic, threads)
}

/// The model of sequences of up to so many positions.
fn load_for(folder: &Path, positions: usize, arithmetic: Arithmetic, threads: usize) -> Runtime {
    let mut file = ModelFile::open(folder).unwrap();
    file.reach(positions);
    Runtime::load(&file, arithmetic, Arc::new(Team::new(threads))).unwrap()
}

fn cases(folder: &Path) -> Vec<(Vec<u32>, Vec<f32>)> {
    let golden = Safetensors::open(&folder.join("golden.safetensors")).unwrap();
    (0..2)
        .map(|i| {
            let ids = golden.tensor(&format!("input_ids_{i}")).unwrap().to_i32().unwrap();
            let logits = golden.tensor(&format!("logits_{i}")).unwrap().to_f32().unwrap();
            (ids.into_iter().map(|i| i as u32).collect(), logits)
        })
        .collect()
}

#[test]
fn logits_are_those_of_transformers() {
    for folder in families() {
        for (ids, expected) in cases(&folder) {
            let runtime = load_for(&folder, ids.len(), Arithmetic::Exact, 2);
            let rows: Vec<usize> = (0..ids.len()).collect();
            let logits = runtime.logits(&Batch::one(0, ids.len()), &ids, None, &rows).unwrap();
            let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            let worst = logits.data().iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= 1e-5 * scale + 2e-5, "{}: {worst} of {scale}", folder.display());
        }
    }
}

/// One token at a time, in uneven pieces, and all at once, with a cache and without: the same bits.
#[test]
fn steps_equal_the_whole() {
    for folder in families() {
        let (ids, _) = cases(&folder).pop().unwrap();
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let runtime = load(&folder, arithmetic, 2);
            let rows: Vec<usize> = (0..ids.len()).collect();
            let whole = runtime.logits(&Batch::one(0, ids.len()), &ids, None, &rows).unwrap();
            for pieces in [vec![1; ids.len()], vec![7, 1, 5, ids.len() - 13]] {
                let mut cache = ModelCache::new(&runtime, ids.len());
                let mut at = 0;
                for len in pieces {
                    let rows: Vec<usize> = (0..len).collect();
                    let batch = Batch::one(at, len);
                    let part = runtime.logits(&batch, &ids[at..at + len], Some(&mut [&mut cache]), &rows).unwrap();
                    for r in 0..len {
                        let place = at + r;
                        assert_eq!(part.row(r), whole.row(place), "{} at {place}, {arithmetic:?}", folder.display());
                    }
                    at += len;
                }
            }
        }
    }
}

/// What a token costs, counted from the graph's nodes; the linears alone run in every family.
#[test]
fn costs_are_those_of_the_graph() {
    let multiply_adds = |graph: &Graph| -> usize {
        let size = |w: usize| graph.weights[w].shape.iter().product::<usize>();
        let of_node = |op: &Op| match op {
            Op::Linear { weight } => size(*weight),
            Op::ExpertLinear { first } => size(*first) * top(graph),
            _ => 0,
        };
        graph.nodes.iter().map(|n| of_node(&n.op)).sum()
    };
    for folder in families() {
        let runtime = load(&folder, Arithmetic::Exact, 2);
        let model = runtime.model();
        let blocks: usize = model.blocks.iter().map(multiply_adds).sum();
        assert_eq!(runtime.multiply_adds(7, 2), 7 * blocks + 2 * multiply_adds(&model.head), "{}", folder.display());
        let has_experts = model.blocks.iter().any(|g| top(g) > 0);
        let [one, many] = [1, 1000].map(|tokens| runtime.weight_bytes(tokens));
        assert!(if has_experts { one < many } else { one == many }, "{}", folder.display());
        assert!(runtime.cache_bytes(0) == 0 && runtime.cache_bytes(4) > runtime.cache_bytes(3));
        Linears::of(&runtime).run(&runtime);
    }
}

/// Experts that a token goes to; 0 without.
fn top(graph: &Graph) -> usize {
    graph.values.iter().find_map(|v| v.routed).map_or(0, |r| r.top)
}

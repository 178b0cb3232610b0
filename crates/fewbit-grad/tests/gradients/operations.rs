use fewbit_graph::{Activation, Builder, Graph, Groups, Op, Rope, Routing, Score, Share};

use crate::check::{Noise, check, random_parameters};

const LENGTHS: [usize; 2] = [7, 4];

fn run(what: &str, width: usize, build: impl Fn(&mut Builder) -> usize) {
    let mut g = Builder::new("x", width);
    let output = build(&mut g);
    let graph = g.finish(output);
    let mut noise = Noise::new(3);
    let parameters = random_parameters(&graph, &mut noise);
    let x: Vec<f32> = noise.vec(11 * width).into_iter().map(|v| 2.0 * v).collect();
    let ropes = [
        Rope { inverse_frequency: vec![1.0, 0.3, 0.1], scale: 1.0, beyond: None },
        Rope { inverse_frequency: vec![0.5, 0.2], scale: 1.3, beyond: None },
    ];
    check(what, &graph, &ropes, &LENGTHS, &parameters, &x);
}

const X: usize = Graph::INPUT;

#[test]
fn linear() {
    run("without bias", 9, |g| g.linear(X, "w", 5, false));
    run("with bias", 9, |g| g.linear(X, "w", 21, true));
    run("two that share an input", 6, |g| {
        let (a, b) = (g.linear(X, "a", 4, true), g.linear(X, "b", 4, false));
        g.add("sum", a, b)
    });
}

#[test]
fn norms() {
    run("rms", 13, |g| g.rms_norm("n", X, "g", 1e-2));
    run("heads", 12, |g| g.head_norm("n", X, "g", 1e-2, 4));
    run("layer", 13, |g| g.layer_norm("n", X, "g", Some("b"), 1e-2));
    run("layer without bias", 13, |g| g.layer_norm("n", X, "g", None, 1e-2));
}

#[test]
fn elementwise() {
    run("scale", 5, |g| g.apply("y", Op::Scale { factor: -1.7 }, &[X]));
    run("positions", 5, |g| g.positions(X, "p", 9, 2));
    run("square", 5, |g| g.apply("y", Op::Mul, &[X, X]));
    run("double", 5, |g| g.add("y", X, X));
    run("product", 5, |g| {
        let (a, b) = (g.linear(X, "a", 6, false), g.linear(X, "b", 6, false));
        g.apply("y", Op::Mul, &[a, b])
    });
    for f in [Activation::Silu, Activation::GeluErf, Activation::GeluTanh, Activation::Relu] {
        run(&format!("{f:?}"), 17, |g| g.apply("y", Op::Activation(f), &[X]));
    }
    run("softcap", 5, |g| g.apply("y", Op::Softcap { cap: 1.5 }, &[X]));
}

#[test]
fn rotations() {
    run("whole heads", 12, |g| g.apply("y", Op::Rope { rope: 0, heads: 2, head_dim: 6, rotary_dims: 6 }, &[X]));
    run("part of heads, scaled", 14, |g| {
        g.apply("y", Op::Rope { rope: 1, heads: 2, head_dim: 7, rotary_dims: 4 }, &[X])
    });
}

#[test]
fn attention() {
    for (heads, kv_heads, softcap, window) in
        [(1, 1, None, None), (4, 2, None, Some(3)), (3, 1, Some(2.0), None), (2, 2, Some(1.0), Some(1))]
    {
        run(&format!("{heads} heads on {kv_heads}, {softcap:?}, {window:?}"), 10, |g| {
            // A bias of the keys would have no gradient: it moves all scores of a query alike.
            let (q, k) = (g.linear(X, "q", heads * 5, true), g.linear(X, "k", kv_heads * 5, false));
            let v = g.linear(X, "v", kv_heads * 5, false);
            let (k, v) = (g.cache("keys", k), g.cache("values", v));
            g.apply(
                "o",
                Op::Attention { heads, kv_heads, head_dim: 5, scale: 0.7, softcap, window, sinks: None },
                &[q, k, v],
            )
        });
    }
}

#[test]
fn gates() {
    run("gate", 7, |g| {
        let by = g.gate(X, "gate", 1, true);
        g.apply("y", Op::Gate, &[X, by])
    });
    run("clamped", 6, |g| {
        let (a, b) = (g.linear(X, "a", 9, true), g.linear(X, "b", 9, true));
        g.apply("y", Op::ClampedGlu { alpha: 1.7, limit: 1.2 }, &[a, b])
    });
}

#[test]
fn heads() {
    run("joined", 6, |g| {
        let (a, b) = (g.linear(X, "a", 3, true), g.linear(X, "b", 8, true));
        g.join_heads("y", a, b, 4)
    });
    for head_dim in [2, 3, 5] {
        run(&format!("{head_dim} values of 3"), 12, |g| g.fit_heads("y", X, 4, head_dim));
    }
}

#[test]
fn experts() {
    let softmax = Routing::softmax;
    for (experts, routing) in [
        (4, softmax(2, Share::Chosen)),
        (5, softmax(3, Share::All)),
        (3, softmax(1, Share::Chosen)),
        (9, softmax(1, Share::All)),
        (6, Routing { scale: 1.7, ..softmax(2, Share::Chosen) }),
        (6, Routing { scale: 1.7, groups: Some(Groups { count: 3, kept: 2, best: 1 }), ..softmax(3, Share::All) }),
        (6, Routing { score: Score::Sigmoid, ..softmax(2, Share::All) }),
        (8, Routing { score: Score::Sigmoid, scale: 2.5, ..softmax(3, Share::Chosen) }),
        (
            8,
            Routing {
                score: Score::Sigmoid,
                scale: 2.5,
                groups: Some(Groups { count: 4, kept: 2, best: 2 }),
                ..softmax(3, Share::Chosen)
            },
        ),
    ] {
        for bias in [None, Some("bias")] {
            run(&format!("{routing:?} of {experts}, {bias:?}"), 6, |g| {
                let logits = g.gate(X, "router", experts, true);
                let routing = g.route(logits, routing, bias);
                let rows = g.dispatch("rows", X, routing);
                let h = g.expert_linear(rows, "experts", "up", 7, true);
                let h = g.apply("h", Op::Activation(Activation::Silu), &[h]);
                let y = g.expert_linear(h, "experts", "down", 6, false);
                g.combine("y", y, routing)
            });
        }
    }
}

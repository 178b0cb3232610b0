use std::sync::{Arc, LazyLock};

use fewbit_format::QuantizedLinear;
use fewbit_kernel::Team;
use fewbit_kernel::linear::{Arithmetic, choose};

/// The largest matrix that is multiplied: kernels do with more what they do with this.
const MOST_WEIGHTS: usize = 1 << 16;
/// One and several take different ways.
const TOKENS: [usize; 2] = [1, 3];

static ALONE: LazyLock<Team> = LazyLock::new(|| Team::new(1));

/// Decodes a linear that was accepted, and multiplies with it: kernels trust what the readers let through.
pub(crate) fn run(linear: QuantizedLinear) {
    let [rows, cols] = linear.shape;
    if rows.checked_mul(cols).is_none_or(|n| n > MOST_WEIGHTS) {
        return;
    }
    let decoded = linear.decode();
    assert_eq!(decoded.data().len(), rows * cols);
    let linear = Arc::new(linear);
    for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
        let kernel = choose(vec![Arc::clone(&linear)], arithmetic);
        for tokens in TOKENS {
            let x: Vec<f32> = (0..tokens * cols).map(|i| (i % 7) as f32 - 3.0).collect();
            let mut y = vec![0.0; tokens * rows];
            kernel.run(&ALONE, tokens, &x, &mut [&mut y]);
        }
    }
}

use fewbit_engine::kinds::{End, Entry, MapJob, OnlineTransform, parse};
use fewbit_format::Online;
use serde::Deserialize;

use super::{BLOCK, check_block, matrix};

pub(crate) const ENTRY: Entry<dyn OnlineTransform> = Entry {
    name: "hadamard",
    cite: "Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, 2024 (arXiv:2404.00456)",
    settings: &[BLOCK],
    build: |table| {
        let own: Hadamard = parse("transform.hadamard", table)?;
        check_block(own.block)?;
        Ok(Box::new(own))
    },
};

/// A Hadamard matrix before each linear whose input no rotation of the recipe reaches, such as `down_proj` (QuaRot,
/// section 4): `x' = x H` runs with the model, `W' = W H` is stored. Without random signs there is nothing to store.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Hadamard {
    block: usize,
}

impl OnlineTransform for Hadamard {
    fn choose(&self, job: &MapJob<'_>) -> Option<Online> {
        if job.end == End::Output || job.is_rotated {
            return None;
        }
        let block = matrix(job.dim, self.block).order();
        Some(Online::Hadamard { block, flips: Vec::new(), is_inverse: false })
    }
}

#[cfg(test)]
mod tests {
    use fewbit_format::{ActivationGrid, Number, ScaleType, Sharing};
    use fewbit_kernel::Team;
    use fewbit_kernel::online::Map;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// QuaRot, section 3: one channel of 80 standard deviations takes the four bits from all others, unless it is spread
    /// over the token. The errors are the catalogue's: a share of 0.27 before, 0.013 after.
    #[test]
    fn an_outlier_is_spread_over_its_token() {
        let (tokens, dim) = (16, 4096);
        let mut r = ChaCha8Rng::seed_from_u64(1);
        // Sums of twelve uniform numbers: nearly normal.
        let mut x: Vec<f32> =
            (0..tokens * dim).map(|_| (0..12).map(|_| r.random::<f32>()).sum::<f32>() - 6.0).collect();
        (0..tokens).for_each(|t| x[t * dim + 100] = if t % 2 == 0 { 80.0 } else { -80.0 });
        let int4 = ActivationGrid {
            number: Number::Int { bits: 4, symmetric: true },
            sharing: Sharing::Token,
            scale: ScaleType::F32,
            is_searched: false,
        };
        // Share of the energy that rounding takes, and the greatest magnitude by the root mean square.
        let measured = |x: &[f32]| {
            let mut rounded = x.to_vec();
            rounded.chunks_exact_mut(dim).for_each(|token| int4.dynamic().round(token));
            let error: f64 = x.iter().zip(&rounded).map(|(a, b)| f64::from((a - b).powi(2))).sum();
            let energy: f64 = x.iter().map(|v| f64::from(v * v)).sum();
            let most = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            (error / energy, f64::from(most) / (energy / x.len() as f64).sqrt())
        };
        let (plain, high) = measured(&x);
        let job = MapJob { name: "down_proj", end: End::Input, dim, is_rotated: false, seed: 0 };
        let map = Hadamard::default().choose(&job).unwrap();
        Map::new(&map, dim).apply(&Team::new(2), &mut x);
        let (spread, low) = measured(&x);
        assert!((0.25..0.5).contains(&plain) && spread < 0.016, "{plain} became {spread}");
        // Of 65536 normal numbers the greatest is at 4.4.
        assert!(high > 40.0 && low < 5.0, "{high} became {low}");
        let output = MapJob { end: End::Output, ..job };
        assert!(Hadamard::default().choose(&output).is_none());
        assert!(Hadamard::default().choose(&MapJob { is_rotated: true, ..job }).is_none());
    }
}

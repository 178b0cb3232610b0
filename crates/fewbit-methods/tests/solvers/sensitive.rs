//! Weights that GPTQ keeps beside the codes, and what follows from scales of scales.

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{InputJob, Keep, LinearJob, Solved};
use fewbit_format::Mat;
use fewbit_kernel::Team;

use super::{correlated, decoded, grid, loss, random, solve, solver};

fn sensitive(threshold: f32, grid_text: &str, w: &Mat, h: &Mat, threads: usize) -> (Solved, Mat) {
    let stats = InputStats { gram: Some(h.clone()), tokens: 4 * h.cols(), ..InputStats::default() };
    let input = InputJob { name: "test", stats: &stats, team: &Team::new(threads) };
    let keep = Keep::Sensitive { threshold };
    let (gptq, grid) = (solver("gptq", ""), grid(grid_text));
    let job = LinearJob { name: "test", weight: w, grid: &*grid, keep: &keep, fisher: None, seed: 0 };
    let solved = gptq.begin(input).unwrap().solve(&job).unwrap();
    let mut seen = decoded(&solved, w);
    solved.sparse.as_ref().unwrap().add_rows(0..w.rows(), seen.data_mut());
    (solved, seen)
}

/// SpQR's outliers: none at an infinite threshold, and the more the lower it is, each time with a smaller error.
#[test]
fn weights_that_cost_too_much_stay_beside_the_codes() {
    let (mut w, h) = (random(37, 64, 21), correlated(64, 22));
    // Few weights that no group of sixteen holds beside the others.
    (0..37).for_each(|r| w[(r, 5 * r % 64)] *= 8.0);
    for grid_text in ["bits = 3\ngroup = 16\nzero = \"point\"\nsecond = 3", "bits = 3\ngroup = 16"] {
        let none = sensitive(1e9, grid_text, &w, &h, 1);
        let plain = solve(&*solver("gptq", ""), &*grid(grid_text), &w, &h, 1);
        assert_eq!(none.1, decoded(&plain, &w));
        let (mut kept, mut error) = (0, loss(&w, &none.1, &h, 0.0));
        for threshold in [60.0, 30.0, 15.0, 8.0, 5.0] {
            let (solved, seen) = sensitive(threshold, grid_text, &w, &h, 1);
            let again = sensitive(threshold, grid_text, &w, &h, 3);
            assert_eq!(format!("{solved:?}"), format!("{:?}", again.0), "threads matter");
            let (count, now) = (solved.sparse.as_ref().unwrap().count(), loss(&w, &seen, &h, 0.0));
            assert!(count > kept && now < error, "{threshold}: {count} after {kept}, {now} after {error}");
            (kept, error) = (count, now);
            // Kept weights have no part in the error that is fed back.
            let said = solved.output_mse.unwrap() * (4 * 64 * 37) as f64;
            let found = loss(&w, &seen, &h, 0.0);
            assert!((said / found - 1.0).abs() < 2e-3, "{threshold}: {said} said, {found} found");
        }
        assert!(kept < 37 * 64 / 3, "{kept} weights");
    }
}

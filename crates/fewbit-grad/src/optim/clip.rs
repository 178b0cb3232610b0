use crate::Gradients;

/// The Euclidean norm of everything in `gradients` together, accumulated in f64 in a fixed order.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    gradients.into_iter().map(sum_of_squares).sum::<f64>().sqrt()
}

/// Scales gradients down to a global norm of `most` where it is greater; returns the norm that they had.
///
/// Source: Pascanu et al. 2013, algorithm 1. A norm that is not finite leaves them as they are: the caller should look at
/// what is returned.
pub fn clip_global_norm(gradients: &mut [Gradients], most: f64) -> f64 {
    let norm = global_norm(gradients.iter().flat_map(Gradients::slices));
    if norm.is_finite() && norm > most {
        let factor = (most / norm) as f32;
        gradients.iter_mut().flat_map(Gradients::slices_mut).flatten().for_each(|v| *v *= factor);
    }
    norm
}

fn sum_of_squares(x: &[f32]) -> f64 {
    let (chunks, rest) = x.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_gradients_are_shortened() {
        let of = |v: Vec<f32>| Gradients { vectors: vec![Some(v)], ..Gradients::default() };
        let mut gradients = [of(vec![3.0; 9]), of(vec![0.0, 4.0, 4.0, 4.0])];
        let norm = 129f64.sqrt();
        assert_eq!(clip_global_norm(&mut gradients, 20.0), norm);
        assert_eq!(gradients[0].vectors[0], Some(vec![3.0; 9]));
        assert_eq!(clip_global_norm(&mut gradients, 1.0), norm);
        assert!((global_norm(gradients.iter().flat_map(Gradients::slices)) - 1.0).abs() < 1e-6);
        gradients[0].vectors[0] = Some(vec![f32::NAN]);
        assert!(clip_global_norm(&mut gradients, 1.0).is_nan());
    }
}

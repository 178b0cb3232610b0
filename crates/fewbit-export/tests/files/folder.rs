//! A Hugging Face folder of an opened model, as the engine writes one.

use std::collections::BTreeMap;
use std::path::Path;

use fewbit_export::{config, sidecars};
use fewbit_format::{Dtype, Group, IntCodes, IntGrid, Mat, ScaleType, Storage, Tensor, Zeros};
use fewbit_graph::Part;
use fewbit_store::ModelFile;
use fewbit_store::layout::{Layout, Scheme};
use safetensors::tensor::TensorView;

/// Writes `file` to `dir`, every linear whose rows groups of 32 tile as integer codes if `bits` says so, all else F32.
pub(crate) fn write(file: &ModelFile, dir: &Path, layout: &dyn Layout, bits: Option<u8>) {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut schemes = Vec::new();
    for (part, graph) in file.model().parts() {
        for (w, weight) in graph.weights.iter().enumerate() {
            if part == Part::Head && file.is_tied() {
                schemes.push(("lm_head".to_owned(), None));
                continue;
            }
            let linear = file.linear(part, w).unwrap();
            let module = file.exported(part, &weight.name).unwrap().name;
            let is_inner = matches!(part, Part::Block(_));
            let storage = match bits {
                Some(bits) if is_inner && weight.shape[1] % 32 == 0 => rounded(&linear.decode(), bits),
                _ => plain(&weight.shape, linear.decode().data()),
            };
            if part != Part::Embed {
                schemes.push((module.clone(), Scheme::of(&storage)));
            }
            match &storage {
                Storage::Dense(t) => drop(tensors.insert(format!("{module}.weight"), t.clone())),
                _ => tensors.extend(layout.tensors(&module, &storage).unwrap()),
            }
            if let Some(bias) = linear.bias {
                let bias = Tensor::from_f32(Dtype::F32, &[bias.len()], &bias).unwrap();
                tensors.insert(format!("{module}.bias"), bias);
            }
        }
        for (v, vector) in graph.vectors.iter().enumerate() {
            let source = file.exported(part, vector.name).unwrap();
            let (stored, names) = (source.stored_vector(&file.vector(part, v).unwrap()), source.vector_tensors());
            for (name, stored) in names.iter().zip(stored.chunks_exact(stored.len() / names.len())) {
                let shape = source.vector_shape(vector);
                tensors.insert(name.clone(), Tensor::from_f32(Dtype::F32, &shape, stored).unwrap());
            }
        }
    }
    std::fs::create_dir_all(dir).unwrap();
    let quantization = bits.map(|_| layout.quantization_config(&schemes, None));
    let config = config(file, quantization, file.is_tied()).unwrap();
    std::fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    for (name, bytes) in sidecars(file).unwrap() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let views = tensors.iter().map(|(name, t)| {
        let dtype = match t.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::BF16 => safetensors::Dtype::BF16,
            Dtype::I32 => safetensors::Dtype::I32,
            Dtype::I64 => safetensors::Dtype::I64,
            Dtype::U8 => safetensors::Dtype::U8,
            other => panic!("{other:?}"),
        };
        (name.as_str(), TensorView::new(dtype, t.shape.clone(), &t.bytes).unwrap())
    });
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &dir.join("model.safetensors")).unwrap();
}

fn plain(shape: &[usize; 2], values: &[f32]) -> Storage {
    Storage::Dense(Tensor::from_f32(Dtype::F32, shape, values).unwrap())
}

/// Round to nearest in symmetric groups of 32 with f16 scales.
fn rounded(w: &Mat, bits: u8) -> Storage {
    let grid = IntGrid { bits, group: Group::Columns(32), symmetric: true, scale: ScaleType::F16 };
    let middle = f32::from(1u16 << (bits - 1));
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for group in w.data().chunks_exact(32) {
        let most = group.iter().fold(0f32, |m, v| m.max(v.abs()));
        let scale = ScaleType::F16.round(most / (middle - 1.0));
        codes.extend(group.iter().map(|v| (v / scale + middle).round().clamp(0.0, 2.0 * middle - 1.0) as u8));
        scales.push(scale);
    }
    Storage::Int(IntCodes::new(w.rows(), w.cols(), grid, &codes, scales, Zeros::Middle).unwrap())
}

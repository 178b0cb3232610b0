use std::path::Path;

use fewbit_format::{Dtype, Error, GgmlBlocks, Result, Tensor};
use fewbit_graph::Container;

use super::{Factor, Form, LoraAdapter, Pair, pairs};
use crate::{Elements, Gguf, GgufTensor};

/// Opens an adapter of llama.cpp.
pub(super) fn open(path: &Path) -> Result<LoraAdapter> {
    let gguf = Gguf::open(path)?;
    let place = |e: Error| e.file(path);
    let is = |key: &str, wanted: &str| gguf.string(key).map(|found| found == Some(wanted));
    if !is("general.type", "adapter")? {
        return Err(place(
            Error::input("is no adapter: `general.type` is not `adapter`")
                .hint("give a model as MODEL, not with `--lora`"),
        ));
    }
    if !is("adapter.type", "lora")? {
        let found = gguf.string("adapter.type")?.unwrap_or("absent").to_owned();
        return Err(place(Error::input(format!("`adapter.type` is `{found}`, where `lora` is read"))));
    }
    if gguf.metadata().contains_key("adapter.alora.invocation_tokens") {
        return Err(place(Error::input(
            "takes effect behind certain tokens alone (`adapter.alora.invocation_tokens`), which is not supported",
        )));
    }
    let Some(architecture) = gguf.string("general.architecture")?.map(str::to_owned) else {
        return Err(place(Error::input("key `general.architecture` is absent").hint("convert the adapter again")));
    };
    let alpha = gguf.f64("adapter.lora.alpha")?.unwrap_or(0.0);
    let mut found = Vec::new();
    for tensor in gguf.tensors() {
        let end = tensor.name.rsplit_once('.').and_then(|(weight, end)| {
            let is_a = [("lora_a", true), ("lora_b", false)].into_iter().find(|(name, _)| *name == end)?.1;
            Some((weight.strip_suffix(".weight")?, is_a))
        });
        let Some((module, is_a)) = end else {
            let e =
                Error::input("is no factor of an adapter").hint("names end with `.weight.lora_a` or `.weight.lora_b`");
            return Err(place(e.tensor(&tensor.name)));
        };
        let plain = plain(&gguf, tensor).map_err(|e| place(e.tensor(&tensor.name)))?;
        found.push((module.to_owned(), is_a, Factor { name: tensor.name.clone(), tensor: plain }));
    }
    let pair = |module: &str, a: Factor, b: Factor| {
        let rank = b.tensor.shape.last().copied().unwrap_or(0) as f64;
        // Of alpha 0 llama.cpp makes no scale.
        let scale = if alpha == 0.0 { 1.0 } else { (alpha / rank) as f32 };
        Ok(Pair { a, b, scale, form: if module == "token_embd" { Form::LookedUp } else { Form::Linear } })
    };
    let pairs = pairs(found, pair).map_err(place)?;
    Ok(LoraAdapter { path: path.to_owned(), container: Container::Gguf, architecture: Some(architecture), pairs })
}

/// A factor as plain floats; of blocks f32 numbers, which hold each of their weights.
fn plain(gguf: &Gguf, tensor: &GgufTensor) -> Result<Tensor> {
    let &[rows, cols] = &tensor.shape[..] else {
        return Err(Error::input(format!("has shape {:?}, where a matrix is needed", tensor.shape))
            .hint("adapters of fused experts are not read"));
    };
    match tensor.elements {
        Elements::Plain(dtype) => Ok(Tensor { dtype, shape: tensor.shape.clone(), bytes: gguf.bytes(tensor) }),
        Elements::Blocks(kind) => {
            let blocks = GgmlBlocks::new(kind, rows, cols, gguf.bytes(tensor))?;
            let mut values = vec![0.0; rows * cols];
            blocks.decode_rows(0..rows, &mut values);
            Tensor::from_f32(Dtype::F32, &tensor.shape, &values)
        }
    }
}

//! `transform_config`: rotations of weights, and of what linears read and make while the model runs.

use fewbit_format::{Error, Online, Result};
use serde_json::Value;

use super::config::targets;
use super::target::Target;
use crate::layout::module::Module;

/// The ends of a linear that are mapped while the model runs.
const ENDS: [&str; 2] = ["input", "output"];

/// One group of `transform_config`. What it does to weights is in the weights; this is what is left.
#[derive(Clone, Debug)]
pub(super) struct Transform {
    group: String,
    /// Size of a block, if not all of a row.
    block: Option<usize>,
    online: Vec<Apply>,
}

#[derive(Clone, Debug)]
struct Apply {
    end: &'static str,
    targets: Vec<Target>,
    ignore: Vec<Target>,
    is_inverse: bool,
}

/// Reads the groups. Keys and queries may be rotated, where no cache rounds keys: their products stay as they are.
///
/// # Errors
/// If one cannot be had exactly: names the group.
pub(super) fn parse(v: &Value, has_cache: bool) -> Result<Vec<Transform>> {
    let groups = v["config_groups"].as_object().into_iter().flatten();
    groups.map(|(name, v)| Transform::parse(name, v, has_cache)).collect()
}

impl Transform {
    fn parse(name: &str, v: &Value, has_cache: bool) -> Result<Self> {
        let unread = |what: &str| Error::input(format!("`{name}` of `transform_config` {what}, which is not read yet"));
        let kind = v["type"].as_str().unwrap_or("transform of no type");
        let apply = v["apply"].as_array().map_or(&[][..], Vec::as_slice);
        let is_online = |a: &&Value| !matches!(a["location"].as_str(), Some("weight_input" | "weight_output"));
        let online: Vec<&Value> = apply.iter().filter(is_online).collect();
        if v["randomize"] == true && !online.is_empty() {
            return Err(unread("has a matrix for each module (`randomize`)"));
        }
        let mut transform = Self {
            group: name.to_owned(),
            block: v["head_dim"].as_u64().and_then(|n| usize::try_from(n).ok()),
            online: Vec::new(),
        };
        // Where queries and keys are turned alike, nothing is left of it in their products.
        let turned = |location: &str| -> Vec<[&Value; 2]> {
            let at = online.iter().filter(|a| a["location"] == location);
            at.map(|a| [&a["targets"], &a["inverse"]]).collect()
        };
        let is_orthonormal = matches!(kind, "hadamard" | "random-hadamard");
        let cancels = is_orthonormal && !has_cache && turned("q_attn") == turned("k_cache");
        for a in &online {
            let location = a["location"].as_str().unwrap_or_default();
            if let Some(end) = ENDS.into_iter().find(|end| *end == location) {
                // The others are matrices of tables, or of any numbers.
                if kind != "hadamard" {
                    return Err(unread(&format!("is a `{kind}` that runs with the model")));
                }
                transform.online.push(Apply {
                    end,
                    targets: targets(&a["targets"], "targets")?,
                    ignore: targets(&a["ignore"], "ignore")?,
                    is_inverse: a["inverse"] == true,
                });
            } else if !(cancels && matches!(location, "q_attn" | "k_cache")) {
                return Err(unread(&format!("is applied to `{location}`")));
            }
        }
        Ok(transform)
    }

    /// The names that matrices of a module may have.
    pub(super) fn names(&self, module: &str) -> impl Iterator<Item = String> {
        let name = move |end: &str| format!("{module}.{}_{end}.weight", self.group);
        ENDS.into_iter().map(name)
    }

    /// The map at one end of a module, for rows of `dim` values, if there is one.
    pub(super) fn map(&self, m: Module<'_>, end: &str, dim: usize) -> Result<Option<Online>> {
        let names = |targets: &[Target]| targets.iter().any(|t| t.matches(m.name).is_some());
        let is_meant = |a: &&Apply| a.end == end && names(&a.targets) && !names(&a.ignore);
        let Some(apply) = self.online.iter().find(is_meant) else { return Ok(None) };
        let block = self.block.unwrap_or(dim);
        if !block.is_power_of_two() || !dim.is_multiple_of(block) {
            let reason =
                format!("asks for Hadamard matrices of order {block} in rows of {dim}, where a power of two is needed");
            return Err(
                Error::input(format!("`{}` of `transform_config` {reason}", self.group)).place(format!("`{}`", m.name))
            );
        }
        Ok(Some(Online::Hadamard { block, flips: Vec::new(), is_inverse: apply.is_inverse }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fewbit_format::{Dtype, Tensor};
    use serde_json::json;

    use super::*;
    use crate::layout::{Quantization, read_online, tensor_names};

    fn quantization(groups: &Value) -> Quantization {
        let transforms = json!({ "config_groups": groups });
        let settings = json!({ "quant_method": "compressed-tensors", "transform_config": transforms });
        Quantization::parse(&json!({ "quantization_config": settings }), None).unwrap()
    }

    fn apply(location: &str) -> Value {
        json!({ "targets": ["Linear"], "ignore": ["lm_head"], "location": location })
    }

    #[test]
    fn what_runs_with_the_model_is_a_map() {
        let mut after = apply("output");
        after["inverse"] = json!(true);
        let groups = json!({
            "u": { "type": "hadamard", "apply": [apply("weight_output"), after] },
            "v": { "type": "hadamard", "head_dim": 2, "apply": [apply("input"), apply("weight_input")] },
            "R1": { "type": "random-matrix", "apply": [apply("weight_input")] },
            "R3": { "type": "random-hadamard", "head_dim": 2, "apply": [apply("q_attn"), apply("k_cache")] },
        });
        let (q, none) = (quantization(&groups), BTreeMap::new());
        q.check(false).unwrap();
        let [input, output] = read_online(&q, &none, "m", [8, 4]).unwrap();
        assert_eq!(input, [Online::Hadamard { block: 2, flips: Vec::new(), is_inverse: false }]);
        assert_eq!(output, [Online::Hadamard { block: 8, flips: Vec::new(), is_inverse: true }]);
        assert_eq!(read_online(&q, &none, "lm_head", [8, 4]).unwrap(), [Vec::new(), Vec::new()]);
        assert!(tensor_names(&q, "m").contains(&"m.v_input.weight".to_owned()));
    }

    #[test]
    fn what_is_not_exact_is_refused_by_its_group() {
        let none = BTreeMap::new();
        let refused = |group: Value| quantization(&json!({ "R": group })).check(true).unwrap_err().to_string();
        let e = refused(json!({ "type": "random-hadamard", "apply": [apply("input")] }));
        assert!(e.starts_with("`R` of `transform_config` is a `random-hadamard` that runs with the model"), "{e}");
        assert!(
            refused(json!({ "type": "hadamard", "randomize": true, "apply": [apply("input")] })).contains("randomize")
        );
        assert!(refused(json!({ "type": "hadamard", "apply": [apply("q_attn")] })).contains("applied to `q_attn`"));
        let fails = |location: &str, tensors: &BTreeMap<String, Tensor>, shape: [usize; 2]| {
            let q = quantization(&json!({ "R": { "type": "hadamard", "apply": [apply(location)] } }));
            read_online(&q, tensors, "m", shape).unwrap_err().to_string()
        };
        assert!(fails("input", &none, [4, 12]).contains("order 12 in rows of 12"));
        let biased = BTreeMap::from([("m.bias".to_owned(), Tensor::from_f32(Dtype::F32, &[4], &[0.0; 4]).unwrap())]);
        assert!(fails("output", &biased, [4, 2]).contains("bias"));
    }
}

use std::collections::BTreeMap;

use fewbit_graph::{Container, Part, Rows, Source, WeightId};

use crate::ModelFile;
use crate::model_file::PREFIXES;

/// The matrices of a model by the names that an adapter gives its modules, whatever the model itself is stored as.
pub(super) struct Modules(BTreeMap<String, Vec<Target>>);

/// A matrix that lies in a module: several where the module holds more than one.
pub(super) struct Target {
    pub(super) weight: (Part, WeightId),
    /// `[out, in]`.
    pub(super) shape: [usize; 2],
    /// Which of the module's rows.
    pub(super) rows: Rows,
}

impl Modules {
    /// Those that this kind of container has names for.
    pub(super) fn of(file: &ModelFile, container: Container) -> Self {
        let mut modules = Self(BTreeMap::new());
        for (part, graph) in file.model().parts() {
            for (id, weight) in graph.weights.iter().enumerate() {
                let source = match container {
                    Container::HuggingFace => file.exported(part, &weight.name).ok(),
                    Container::Gguf => file.exported_gguf(part, &weight.name),
                };
                let Some(mut source) = source else { continue };
                let alias = source.alias.take().map(|alias| *alias);
                for Source { name, rows, .. } in [Some(source), alias].into_iter().flatten() {
                    let target = Target { weight: (part, id), shape: weight.shape, rows };
                    modules.0.entry(name).or_default().push(target);
                }
            }
        }
        modules
    }

    /// The matrices of a module; none where the model has no such module.
    pub(super) fn find(&self, module: &str) -> &[Target] {
        if let Some(targets) = self.0.get(module) {
            return targets;
        }
        // A model within another, or without its head, has something else in front of the same names.
        let mut rests = PREFIXES.iter().filter_map(|p| module.strip_prefix(p));
        let found =
            rests.find_map(|rest| ["model.", "transformer."].iter().find_map(|p| self.0.get(&format!("{p}{rest}"))));
        found.map(Vec::as_slice).unwrap_or_default()
    }
}

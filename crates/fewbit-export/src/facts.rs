//! What a checkpoint says of itself: its name and its licence.

use std::path::Path;

use fewbit_store::ModelFile;
use serde_json::Value;

/// The model's name: of the manifest of a folder that we wrote, of the metadata, of the configuration, of the folder.
pub(crate) fn name(file: &ModelFile) -> Option<String> {
    let checkpoint = file.checkpoint();
    let last = |path: &str| path.rsplit('/').next().filter(|s| !s.is_empty()).map(str::to_owned);
    let manifest = checkpoint.sidecar("fewbit.json").and_then(|p| std::fs::read(p).ok());
    let manifest: Option<Value> = manifest.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let of_manifest = manifest.as_ref().and_then(|m| m["base_model"].as_str()).and_then(last);
    let of_gguf = || checkpoint.gguf()?.string("general.name").ok().flatten().map(str::to_owned);
    let of_config = || checkpoint.config().get("_name_or_path")?.as_str().and_then(last);
    let of_path = || of_path(checkpoint.path());
    of_manifest.or_else(of_gguf).or_else(of_config).or_else(of_path)
}

/// The last part of a path. Snapshots in the hub's cache are named by commits: there it is the repository's name.
fn of_path(path: &Path) -> Option<String> {
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let of_snapshot = || {
        let snapshots = path.parent().filter(|p| p.ends_with("snapshots"))?;
        let folder = name(snapshots.parent()?)?;
        folder.strip_prefix("models--")?.rsplit_once("--").map(|(_, name)| name.to_owned())
    };
    of_snapshot().or_else(|| name(path))
}

/// The licence: of the front matter of the folder's README.md, or of the metadata.
pub(crate) fn license(file: &ModelFile) -> Option<String> {
    if let Some(gguf) = file.checkpoint().gguf() {
        return gguf.string("general.license").ok().flatten().map(str::to_owned);
    }
    let readme = std::fs::read(file.checkpoint().sidecar("README.md")?).ok()?;
    front_matter(&String::from_utf8_lossy(&readme), "license")
}

/// A single-line value of the front matter of a card.
fn front_matter(card: &str, key: &str) -> Option<String> {
    let (front, _) = card.strip_prefix("---\n")?.split_once("\n---")?;
    let line = front.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let value = line.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_the_name_of_its_repository() {
        let name = |path: &str| of_path(Path::new(path)).unwrap();
        assert_eq!(name("/m/small-model"), "small-model");
        assert_eq!(name("/c/hub/models--owner--small-model/snapshots/0123abcd"), "small-model");
        assert_eq!(name("/c/snapshots/0123abcd"), "0123abcd");
    }

    #[test]
    fn the_front_matter_of_a_card() {
        let card = "---\ntags:\n- a\nlicense: \"apache-2.0\"\nlicense_name: x\n---\nlicense: none\n";
        assert_eq!(front_matter(card, "license").as_deref(), Some("apache-2.0"));
        assert_eq!(front_matter(card, "base_model"), None);
        assert_eq!(front_matter("# A\nlicense: x\n", "license"), None);
    }
}

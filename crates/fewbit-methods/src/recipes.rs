/// The recipes that come with the program: name and TOML text.
pub const RECIPES: &[(&str, &str)] = &[
    ("rtn", include_str!("../../../recipes/rtn.toml")),
    ("gptq", include_str!("../../../recipes/gptq.toml")),
    ("awq", include_str!("../../../recipes/awq.toml")),
    ("hqq", include_str!("../../../recipes/hqq.toml")),
    ("nf4", include_str!("../../../recipes/nf4.toml")),
    ("quarot", include_str!("../../../recipes/quarot.toml")),
    ("mxfp4", include_str!("../../../recipes/mxfp4.toml")),
    ("nvfp4", include_str!("../../../recipes/nvfp4.toml")),
    ("rsq", include_str!("../../../recipes/rsq.toml")),
    ("quantease", include_str!("../../../recipes/quantease.toml")),
    ("autoround", include_str!("../../../recipes/autoround.toml")),
    ("adaround", include_str!("../../../recipes/adaround.toml")),
    ("flexround", include_str!("../../../recipes/flexround.toml")),
    ("omniquant", include_str!("../../../recipes/omniquant.toml")),
    ("lsq", include_str!("../../../recipes/lsq.toml")),
    ("efficientqat", include_str!("../../../recipes/efficientqat.toml")),
];

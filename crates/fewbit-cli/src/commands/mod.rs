//! The commands: a file each, with its options and what it prints.

pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod chat;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod logits;
pub(crate) mod make_model;
pub(crate) mod make_stress;
pub(crate) mod quantize;
pub(crate) mod recipes;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod tokenize;

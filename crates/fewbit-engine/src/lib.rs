//! From recipe to plan to sweeps: statistics, folding, journal, shards. Knows kinds of passes, no paper.

mod bound;
mod calibration;
mod finish;
mod fold;
mod importance;
mod journal;
pub mod kinds;
mod origin;
mod outputs;
mod own_text;
mod part;
mod patterns;
mod places;
mod plan;
mod program;
mod quantize;
mod recipe;
mod report;
mod request;
mod stats;
mod stop;
mod stream;
mod tune;
mod walk;

pub use calibration::{Calibration, CalibrationSource};
pub use fold::{BlockTensors, fold};
pub use outputs::Format;
pub use patterns::{Override, Pattern};
pub use plan::{Plan, Sweep};
pub use quantize::{plan, quantize};
pub use recipe::{CalibrationSettings, Pass, Recipe, Sequential, Settings, StreamOf, TokenWeights};
pub use report::{BlockReport, LinearReport, Progress, Report};
pub use request::Request;
pub use stats::InputStats;
pub use toml::Table;
pub use tune::{DecaySetting, Learn, LossSetting, OptimizerSetting, Scope, TuneSettings};

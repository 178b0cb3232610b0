use fewbit_format::{Error, Result};
use fewbit_grad::optim::{AdamW, Decay, Optimizer, Schedule, SignSgd};
use serde::Deserialize;

/// How leaves are learned: what all learners have in common.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuneSettings {
    /// What is learned at once.
    pub scope: Scope,
    /// What is pulled to what: a whole model's logits; a block's outputs are always compared by their squared error.
    pub loss: LossSetting,
    /// Steps of the optimizer, for each block, each window, or the model.
    pub steps: usize,
    /// Sequences of a step, drawn at random.
    pub batch: usize,
    /// Rule of a step.
    pub optimizer: OptimizerSetting,
    /// How rates fall.
    pub decay: DecaySetting,
    /// Share of the numbers of a block's input that come from the original stream (QDrop).
    pub mix: f32,
    /// Whether the original block's output on the same input is a second target (OmniQuant's `aug_loss`).
    pub aug: bool,
    /// Weight of `KL(softmax(target) ‖ softmax(output))` beside a block's squared error (CBQ).
    pub soft: f32,
    /// Blocks of a window (CBQ).
    pub window: usize,
}

/// What is learned at once.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// A block, its output pulled to that of the original block.
    Block,
    /// Windows of consecutive blocks, once all of the model is rounded: what the last block of a window makes is pulled to
    /// what the original makes, then the window moves on by one block.
    Window,
    /// The model, once all of it is rounded.
    Model,
}

/// What a whole model is pulled to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LossSetting {
    /// The original's distribution of the next token.
    Kl,
    /// The text's next token.
    Ce,
}

/// Rule of a step.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the rules")]
pub enum OptimizerSetting {
    Sign,
    Adam,
}

/// How rates fall.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the rules")]
pub enum DecaySetting {
    Constant,
    Linear,
    Cosine,
}

impl Default for TuneSettings {
    fn default() -> Self {
        Self {
            scope: Scope::Block,
            loss: LossSetting::Kl,
            steps: 200,
            batch: 8,
            optimizer: OptimizerSetting::Sign,
            decay: DecaySetting::Linear,
            mix: 0.0,
            aug: false,
            soft: 0.0,
            window: 2,
        }
    }
}

impl TuneSettings {
    /// All settings with their defaults, for people: a recipe writes them beside the learner's own.
    pub const SETTINGS: &'static [(&'static str, &'static str)] = &[
        (
            "scope = \"block\"",
            "what is learned at once: a `block`; a `window` of blocks or the `model`, once all of it is rounded",
        ),
        (
            "loss = \"kl\"",
            "what a whole model is pulled to: `kl` (the original's distribution), `ce` (the text's next token)",
        ),
        ("steps = 200", "steps of the optimizer, for each block, each window, or the model"),
        ("batch = 8", "sequences of a step, drawn at random"),
        ("optimizer = \"sign\"", "`sign` (the gradient's sign alone) or `adam`"),
        ("decay = \"linear\"", "how rates fall: `constant`, `linear`, `cosine` (to a twentieth)"),
        ("mix = 0.0", "share of a block's input that comes from the original stream (QDrop)"),
        ("aug = false", "the original block's output on the same input as a second target (OmniQuant)"),
        ("soft = 0.0", "weight of the divergence of the outputs' softmax beside a block's squared error (CBQ)"),
        ("window = 2", "blocks of a window, which moves on by one block at a time (CBQ)"),
    ];

    /// Whether a setting of that name is one of all learners.
    pub(crate) fn has(key: &str) -> bool {
        Self::SETTINGS.iter().any(|(s, _)| s.split_once(" = ").is_some_and(|(name, _)| name == key))
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.steps == 0 || self.batch == 0 {
            return Err(Error::input("`learn.steps` and `learn.batch` are positive numbers"));
        }
        if self.window == 0 {
            return Err(Error::input("`learn.window` is 0, where a positive number is needed"));
        }
        if !(self.soft.is_finite() && self.soft >= 0.0) {
            return Err(Error::input(format!("`learn.soft` is {}, where 0 or a positive number is needed", self.soft)));
        }
        if self.scope != Scope::Block && self.mix > 0.0 {
            return Err(Error::input("`learn.mix` mixes the inputs of single blocks")
                .hint("set `learn.mix=0`, or `learn.scope=\"block\"`"));
        }
        if !(0.0..=1.0).contains(&self.mix) {
            return Err(Error::input(format!("`learn.mix` is {}, where 0 to 1 is possible", self.mix)));
        }
        Ok(())
    }

    pub(super) fn schedule(&self) -> Schedule {
        let decay = match self.decay {
            DecaySetting::Constant => Decay::Constant,
            DecaySetting::Linear => Decay::Linear { least: 0.0 },
            DecaySetting::Cosine => Decay::Cosine { least: 0.05 },
        };
        Schedule { peak: 1.0, steps: self.steps as u64, warmup: 0, decay }
    }

    pub(super) fn optimizer(&self, len: usize) -> Box<dyn Optimizer> {
        match self.optimizer {
            OptimizerSetting::Sign => Box::new(SignSgd::new(len, 0.0)),
            OptimizerSetting::Adam => Box::new(AdamW::new(len)),
        }
    }
}

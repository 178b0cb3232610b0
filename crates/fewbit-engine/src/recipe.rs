use fewbit_format::{Error, Result};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::allocate::AllocateSettings;
use crate::kinds::{Activation, Entry, Grid, Learner, OnlineTransform, Registry, Rotation, Transform, near, parse};
use crate::program::Step;
use crate::tune::{Learn, TuneSettings};

/// A method as it is written down: a citation, and passes in the order in which they happen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Short name.
    pub name: String,
    /// The source.
    pub cite: String,
    /// One sentence: when to use it.
    pub summary: String,
    /// What it costs, in words.
    pub cost: String,
    /// The passes: `use = "KIND.NAME"` and settings.
    #[serde(default, rename = "pass")]
    pub passes: Vec<Table>,
    /// Calibration text, where the passes need one.
    #[serde(default)]
    pub calibration: CalibrationSettings,
    /// How bits are spread over the linears, where the grid's settings are not those of all.
    pub allocate: Option<AllocateSettings>,
}

/// How much calibration text, and which.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationSettings {
    /// Sequences.
    pub samples: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Whose outputs the statistics of a linear come from, within its block.
    pub sequential: Sequential,
    /// Which blocks made the inputs of a block.
    pub stream: StreamOf,
    /// What a token counts in `XᵀX`.
    pub weights: TokenWeights,
    /// With `weights = "attention"`: what the least seen token of a sequence counts, where the most seen counts one.
    pub least: f32,
    /// With `weights = "attention"`: exponent of the weights (1 in the released code, 2 in the paper).
    pub power: f32,
    /// How often each sequence is used, its tokens shifted cyclically, so that each stands at several positions.
    pub shifts: usize,
}

/// What tokens count in statistics.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenWeights {
    /// All the same.
    #[default]
    Uniform,
    /// By the attention that they receive in their block (RSQ). What experts read counts the same for all tokens.
    Attention,
}

/// The residual stream that statistics are taken from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum StreamOf {
    /// What the already compressed blocks make: later blocks can make up for the errors of earlier ones.
    #[default]
    Compressed,
    /// What the original blocks make.
    Original,
}

/// Within a block, the inputs that statistics are taken from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Sequential {
    /// Every linear sees what the already compressed linears before it make (GPTQ's `true-sequential`). Recipes with
    /// transforms look at whole blocks, since a transform changes linears that came before.
    #[default]
    Linear,
    /// All linears of a block see the original block.
    Block,
}

impl Default for CalibrationSettings {
    fn default() -> Self {
        Self {
            samples: 128,
            length: 512,
            sequential: Sequential::Linear,
            stream: StreamOf::Compressed,
            weights: TokenWeights::Uniform,
            least: 0.005,
            power: 1.0,
            shifts: 1,
        }
    }
}

impl CalibrationSettings {
    fn check(&self) -> Result<()> {
        let wrong = |key: &str, value: f64, range: &str| {
            Err(Error::input(format!("`calibration.{key}` is {value}, where {range} is possible")))
        };
        if !(0.0..=1.0).contains(&self.least) {
            return wrong("least", f64::from(self.least), "0 to 1");
        }
        if !(self.power > 0.0 && self.power <= 4.0) {
            return wrong("power", f64::from(self.power), "more than 0 and at most 4");
        }
        if !(1..=64).contains(&self.shifts) {
            return wrong("shifts", self.shifts as f64, "1 to 64");
        }
        Ok(())
    }
}

/// What the command line changes.
#[derive(Clone, Debug, Default)]
pub struct Settings(pub Vec<(String, Value)>);

/// A pass that is ready to work.
#[derive(Debug)]
pub enum Pass {
    /// Another basis for the whole model.
    Rotate(Box<dyn Rotation>),
    /// Easier to round.
    Transform(Box<dyn Transform>),
    /// Maps that run with the model.
    Online(Box<dyn OnlineTransform>),
    /// The numbers that can be stored from here on, as settings: an override makes another grid of them.
    Grid(GridSettings),
    /// What is rounded while the model runs.
    Activation(Box<dyn Activation>),
    /// What is done to each linear: rounds it, or keeps something beside its codes.
    Step(Step),
    /// Improves what was rounded.
    Learn(Learn),
}

/// A grid that is not yet bound to a linear's overrides.
#[derive(Clone, Debug)]
pub struct GridSettings {
    name: String,
    table: Table,
}

impl GridSettings {
    /// The grid under these changes of its keys.
    ///
    /// # Errors
    /// If a key is unknown or a value out of range.
    pub fn build(&self, registry: &Registry, changes: &[(String, Value)]) -> Result<Box<dyn Grid>> {
        let mut table = self.table.clone();
        for (key, value) in changes {
            table.insert(key.clone(), value.clone());
        }
        let entry = registry.grids.iter().find(|e| e.name == self.name);
        (entry.ok_or_else(|| Error::internal("a grid that was found is gone"))?.build)(table)
    }

    /// Whether a key is set.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Says where the text is not TOML, or which key is unknown.
    pub fn parse(text: &str) -> Result<Self> {
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(0, |s| text[..s.start.min(text.len())].lines().count().max(1));
            Error::input(format!("line {line}: {}", e.message().replace('\n', " ")))
        })?;
        parse("recipe", table)
    }

    /// No passes: the original, and calibration text as usual.
    pub fn of_nothing() -> Self {
        let (name, words) = ("none".to_owned(), String::new());
        let (cite, summary, cost) = (words.clone(), words.clone(), words);
        let calibration = CalibrationSettings::default();
        Self { name, cite, summary, cost, passes: Vec::new(), calibration, allocate: None }
    }

    /// Finds a recipe among `builtin` (name, text), or reads the file of that path.
    ///
    /// # Errors
    /// Names what is known where neither is there.
    pub fn find(name: &str, builtin: &[(&str, &str)]) -> Result<Self> {
        if let Some((_, text)) = builtin.iter().find(|(n, _)| *n == name) {
            return Self::parse(text).map_err(|e| e.place(format!("recipe `{name}`")));
        }
        let path = std::path::Path::new(name);
        if path.extension().is_some_and(|e| e == "toml") || path.exists() {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, &e))?;
            return Self::parse(&text).map_err(|e| e.file(path));
        }
        let known: Vec<&str> = builtin.iter().map(|(n, _)| *n).collect();
        let error = Error::input(format!("recipe `{name}` is unknown"));
        Err(match near(name, known.iter().copied()) {
            Some(n) => error.hint(format!("did you mean `{n}`?")),
            None => error.hint(format!("known are {}; or give the path of a .toml file", known.join(", "))),
        })
    }

    /// The passes by name, such as `solve.gptq`, in order.
    pub fn pass_names(&self) -> impl Iterator<Item = &str> {
        self.passes.iter().flat_map(names)
    }

    /// The calibration's settings under the command line's `calibration.KEY`.
    ///
    /// # Errors
    /// If a key is unknown or a value out of range.
    pub fn calibration(&self, settings: &Settings) -> Result<CalibrationSettings> {
        let mut table = Table::try_from(&self.calibration).map_err(|e| Error::internal(e.to_string()))?;
        for (key, value) in &settings.0 {
            if let Some(field) = key.strip_prefix(CALIBRATION) {
                table.insert(field.to_owned(), value.clone());
            }
        }
        let calibration: CalibrationSettings = parse("calibration", table)?;
        calibration.check()?;
        Ok(calibration)
    }

    /// The allocation under the command line's `allocate.KEY`, if there is one.
    ///
    /// # Errors
    /// If a key is unknown or a value out of range.
    pub fn allocate(&self, settings: &Settings) -> Result<Option<AllocateSettings>> {
        let set = || settings.0.iter().filter_map(|(key, value)| Some((key.strip_prefix(ALLOCATE)?, value)));
        if self.allocate.is_none() && set().next().is_none() {
            return Ok(None);
        }
        let base = self.allocate.clone().unwrap_or_default();
        let mut table = Table::try_from(base).map_err(|e| Error::internal(e.to_string()))?;
        for (field, value) in set() {
            table.insert(field.to_owned(), value.clone());
        }
        // A whole number of bits is a number.
        if let Some(Value::Integer(bits)) = table.get("bits") {
            table.insert("bits".to_owned(), Value::Float(*bits as f64));
        }
        let allocate: AllocateSettings = parse("allocate", table)?;
        allocate.check()?;
        Ok(Some(allocate))
    }

    /// The passes under the command line's settings; `scale` is the type of scales that `source` stands for.
    ///
    /// # Errors
    /// If a pass or key is unknown, or a value is out of range.
    pub fn compile(&self, settings: &Settings, registry: &Registry, scale: &str) -> Result<Vec<Pass>> {
        let mut tables = self.passes.clone();
        for (key, value) in settings.0.iter().filter(|(k, _)| !k.starts_with(CALIBRATION) && !k.starts_with(ALLOCATE)) {
            set(&mut tables, key, value)?;
        }
        tables.into_iter().map(|t| pass(t, registry, scale)).collect()
    }
}

const CALIBRATION: &str = "calibration.";
const ALLOCATE: &str = "allocate.";

/// The name of a pass, and of those within it.
fn names(pass: &Table) -> Vec<&str> {
    let own = pass.get("use").and_then(Value::as_str);
    let inner = pass.get("pass").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table);
    own.into_iter().chain(inner.flat_map(names)).collect()
}

/// Sets `KIND.KEY` or `KIND.NAME.KEY` in the passes of that kind.
fn set(passes: &mut [Table], key: &str, value: &Value) -> Result<()> {
    let set = key
        .rsplit_once('.')
        .map_or(0, |(stage, field)| passes.iter_mut().map(|table| set_in(table, stage, field, value)).sum::<usize>());
    if set > 0 {
        return Ok(());
    }
    let names: Vec<&str> = passes.iter().flat_map(names).collect();
    let error = Error::input(format!("`--set {key}`: no pass of the recipe has that key"));
    let kinds = names.iter().filter_map(|n| n.split('.').next());
    Err(match key.split('.').next().and_then(|k| near(k, kinds)) {
        Some(k) => error.hint(format!("did you mean `{k}.…`? its passes are {}", names.join(", "))),
        None => error.hint(format!("its passes are {}", names.join(", "))),
    })
}

/// Sets a key of a pass, and of those within it, where they are meant; returns of how many.
fn set_in(pass: &mut Table, stage: &str, field: &str, value: &Value) -> usize {
    let name = pass.get("use").and_then(Value::as_str).unwrap_or_default();
    let is_meant = name == stage || name.split('.').next() == Some(stage);
    if is_meant {
        pass.insert(field.to_owned(), value.clone());
    }
    let inner = pass.get_mut("pass").and_then(Value::as_array_mut).into_iter().flatten();
    let inner = inner.filter_map(Value::as_table_mut).map(|t| set_in(t, stage, field, value)).sum::<usize>();
    usize::from(is_meant) + inner
}

fn pass(mut table: Table, registry: &Registry, scale: &str) -> Result<Pass> {
    let Some(Value::String(name)) = table.remove("use") else {
        return Err(Error::input("a pass of the recipe has no `use = \"KIND.NAME\"`"));
    };
    let (kind, member) = name.split_once('.').unwrap_or((&name, ""));
    match kind {
        "transform" => {
            let rotation = registry.rotations.iter().find(|e| e.name == member);
            let online = registry.onlines.iter().find(|e| e.name == member);
            match (rotation, online) {
                (Some(rotation), _) => (rotation.build)(table).map(Pass::Rotate),
                (_, Some(online)) => (online.build)(table).map(Pass::Online),
                _ => (find(registry.transforms, kind, member)?.build)(table).map(Pass::Transform),
            }
        }
        "solve" => (find(registry.solvers, kind, member)?.build)(table).map(Step::Solve).map(Pass::Step),
        "residual" => (find(registry.residuals, kind, member)?.build)(table).map(Step::Residual).map(Pass::Step),
        "grid" => {
            let entry = find(registry.grids, kind, member)?;
            let has_scale = entry.settings.iter().any(|(s, _)| s.starts_with("scale ="));
            if has_scale && table.get("scale").is_none_or(|v| v.as_str() == Some("source")) {
                table.insert("scale".to_owned(), Value::String(scale.to_owned()));
            }
            let grid = GridSettings { name: member.to_owned(), table };
            (entry.build)(grid.table.clone())?;
            Ok(Pass::Grid(grid))
        }
        "act" => (find(registry.activations, kind, member)?.build)(table).map(Pass::Activation),
        "learn" => learn(find(registry.learners, kind, member)?, table).map(Pass::Learn),
        "alternate" => alternate(table, registry, scale).map(Pass::Step),
        _ => Err(Error::input(format!("pass `{name}` is of no known kind"))
            .hint("kinds are transform, act, grid, residual, solve, learn, alternate")),
    }
}

/// The member of a kind.
fn find<T: ?Sized>(members: &'static [Entry<T>], kind: &str, member: &str) -> Result<&'static Entry<T>> {
    members.iter().find(|e| e.name == member).ok_or_else(|| {
        let error = Error::input(format!("pass `{kind}.{member}` is unknown"));
        let known: Vec<&str> = members.iter().map(|e| e.name).collect();
        match near(member, known.iter().copied()) {
            Some(n) => error.hint(format!("did you mean `{kind}.{n}`?")),
            None => error.hint(format!("known are {kind}.{}", known.join(&format!(", {kind}.")))),
        }
    })
}

/// The tuner's settings stand beside the learner's own.
fn learn(entry: &Entry<dyn Learner>, table: Table) -> Result<Learn> {
    let (common, own) = table.into_iter().partition(|(key, _)| TuneSettings::has(key));
    let settings: TuneSettings = parse("learn", common)?;
    settings.check()?;
    Ok(Learn { settings, learner: (entry.build)(own)? })
}

/// Settings of `alternate`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alternate {
    /// Rounds at most.
    rounds: usize,
    pass: Vec<Table>,
}

fn alternate(table: Table, registry: &Registry, scale: &str) -> Result<Step> {
    let Alternate { rounds, pass: passes } = parse("alternate", table)?;
    if rounds == 0 {
        return Err(Error::input("`alternate.rounds` is 0, where a positive number is needed"));
    }
    let step = |table| match pass(table, registry, scale)? {
        Pass::Step(step) => Ok(step),
        _ => Err(Error::input("`alternate` holds a pass that is neither `solve` nor `residual`")),
    };
    Ok(Step::Alternate(rounds, passes.into_iter().map(step).collect::<Result<_>>()?))
}

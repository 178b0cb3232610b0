use clap::Args;
use fewbit_format::{Error, Mat, Result};
use fewbit_runtime::{Batch, language};
use fewbit_store::ModelFile;
use fewbit_text::{Special, Tokenizer};
use serde_json::json;

use crate::adapters::Adapters;
use crate::arguments::ArithmeticName;
use crate::loading;
use crate::session::Session;

/// Candidates that people are shown for each position.
const SHOWN: usize = 5;

/// Show the logits after the ids of a text, for checking against other programs
///
/// JSON: ids, positions (of the rows, from 0), logits (a row of the vocabulary's size for each position).
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit logits demo --prompt 'Once upon a time' --last 1 --arithmetic exact")]
pub(crate) struct Logits {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    #[command(flatten)]
    adapters: Adapters,
    #[command(flatten)]
    input: Input,
    /// Rows for the last K positions only [default: all]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,
    /// What may be rounded
    #[arg(long, value_enum, default_value = "fast", value_name = "A")]
    arithmetic: ArithmeticName,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Input {
    /// Token ids; needs no tokenizer
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    ids: Option<String>,
    /// A text, with the tokens that the model's own rule puts around it
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    prompt: Option<String>,
}

impl Logits {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let mut ids = self.input.ids.as_deref().map(parse_ids).transpose()?;
        let mut file = self.adapters.model_file(session, &self.model)?;
        if let Some(prompt) = &self.input.prompt {
            ids = Some(language::tokenizer_of(file.checkpoint())?.encode(prompt, Special::ParsedWithBos)?);
        }
        let ids = ids.unwrap_or_default();
        if ids.is_empty() {
            return Err(Error::input("there is no token").hint("give a text, or ids"));
        }
        file.reach(ids.len());
        let context = file.model().context;
        if ids.len() > context {
            session.output.note(&format!("note: {} tokens, where the model was made for {context}", ids.len()));
        }
        let runtime = loading::runtime(session, &file, self.arithmetic)?;
        let from = ids.len() - self.last.map_or(ids.len(), |k| ids.len().min(k as usize));
        let positions: Vec<usize> = (from..ids.len()).collect();
        let logits = runtime.logits(&Batch::one(0, ids.len()), &ids, None, &positions);
        let logits = logits.map_err(|e| e.file(file.checkpoint().path()))?;
        if session.output.is_json() {
            return session.output.object_text(|| object(&ids, &positions, &logits));
        }
        table(session, &file, &positions, &logits)
    }
}

fn parse_ids(list: &str) -> Result<Vec<u32>> {
    let parts = list.split(',').map(str::trim).filter(|_| !list.trim().is_empty());
    parts
        .map(|part| {
            part.parse().map_err(|_| {
                Error::input(format!("`--ids`: `{part}` is no token id"))
                    .hint("give whole numbers from 0, such as `1,2,3`")
            })
        })
        .collect()
}

/// Written number by number: a tree of values would need many times the memory.
fn object(ids: &[u32], positions: &[usize], logits: &Mat) -> String {
    let mut out = json!({ "ids": ids, "positions": positions }).to_string();
    out.pop();
    out.push_str(",\"logits\":[");
    for r in 0..positions.len() {
        out.push_str(if r > 0 { ",[" } else { "[" });
        for (i, v) in logits.row(r).iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            // The shortest digits that lead back to the same f32.
            out.push_str(&v.to_string());
        }
        out.push(']');
    }
    out.push_str("]}");
    out
}

/// The most probable next tokens of each position.
fn table(session: &Session, file: &ModelFile, positions: &[usize], logits: &Mat) -> Result<()> {
    let tokenizer: Option<Tokenizer> = language::tokenizer_of(file.checkpoint()).ok();
    for (r, position) in positions.iter().enumerate() {
        let row = logits.row(r);
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        let name = |id: u32| tokenizer.as_ref().map(|t| format!(" `{}`", t.piece(id))).unwrap_or_default();
        let best: Vec<String> =
            order.iter().take(SHOWN).map(|id| format!("{id}{} {:.4}", name(*id), row[*id as usize])).collect();
        session.output.line(&format!("after position {position}: {}", best.join(", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_a_list() {
        assert_eq!(parse_ids("1, 2,3").unwrap(), [1, 2, 3]);
        assert!(parse_ids("").unwrap().is_empty());
        for bad in ["1,,2", "-1", "x", "4294967296", "1.5"] {
            assert!(parse_ids(bad).unwrap_err().to_string().contains("is no token id"), "{bad}");
        }
    }

    #[test]
    fn the_object_is_json() {
        let logits = Mat::from_vec(2, 2, vec![0.5, -1e-30, 3.4e38, 7.0]);
        let v: serde_json::Value = serde_json::from_str(&object(&[4, 5], &[0, 1], &logits)).unwrap();
        assert_eq!(v["positions"], json!([0, 1]));
        assert_eq!(v["logits"][1][0].as_f64().unwrap() as f32, 3.4e38);
        assert_eq!(v["logits"][0][1].as_f64().unwrap() as f32, -1e-30);
    }
}

//! The table of evaluations in a model's card.

/// One evaluation of a written model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalRow {
    /// The text: its file's name.
    pub text: String,
    /// `blocks`, `strided` or `llamacpp`.
    pub protocol: String,
    /// Ids of one window.
    pub length: usize,
    /// Ids that were predicted.
    pub tokens: u64,
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The original's, where it was evaluated beside.
    pub original_perplexity: Option<f64>,
    /// Bits that the text's bytes take under the model.
    pub bits_per_byte: Option<f64>,
    /// Mean KL divergence from the original, in nats per token.
    pub kl_mean: Option<f64>,
    /// The interval that holds the mean with 95 %.
    pub kl_mean_ci95: Option<[f64; 2]>,
    /// 99th percentile of the KL divergence.
    pub kl_p99: Option<f64>,
    /// Share of positions where both models find the same id likeliest.
    pub top1_agreement: Option<f64>,
}

pub(crate) const BEGIN: &str = "<!-- fewbit eval -->";
pub(crate) const END: &str = "<!-- /fewbit eval -->";
const HEADER: [&str; 10] = [
    "text",
    "protocol",
    "length",
    "tokens",
    "perplexity",
    "original",
    "bits per byte",
    "KL to the original",
    "KL p99",
    "same first choice",
];
/// Text, protocol and length: what makes two rows the same evaluation.
const KEY_CELLS: usize = 3;

/// The table without rows, between its markers.
pub(crate) fn empty() -> String {
    let rule = format!("|{}", "---|".repeat(HEADER.len()));
    format!("{BEGIN}\n{}\n{rule}\n{END}\n", line(&HEADER.map(str::to_owned)))
}

/// The card with an evaluation in its table: a new row, or in place of the row of the same text, protocol and length.
///
/// A card without the table gets one at its end; everything around the table stays as it is.
pub fn add_row(card: &str, row: &EvalRow) -> String {
    let Some((before, rest)) = card.split_once(BEGIN) else {
        let gap = if card.ends_with('\n') || card.is_empty() { "" } else { "\n" };
        return add_row(&format!("{card}{gap}\n## Evaluation\n\n{}", empty()), row);
    };
    let (table, after) = rest.split_once(END).unwrap_or((rest, ""));
    let mut rows: Vec<&str> = table.lines().filter(|l| l.starts_with('|')).skip(2).collect();
    let new = line(&cells(row));
    match rows.iter_mut().find(|old| key(old) == key(&new)) {
        Some(old) => *old = &new,
        None => rows.push(&new),
    }
    let header = empty();
    let header = header.strip_suffix(&format!("{END}\n")).unwrap_or(&header);
    let rows: String = rows.iter().flat_map(|r| [*r, "\n"]).collect();
    format!("{before}{header}{rows}{END}{after}")
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn key(line: &str) -> Vec<String> {
    let escaped = line.replace("\\|", "\u{0}");
    escaped.split('|').skip(1).take(KEY_CELLS).map(|c| c.trim().to_owned()).collect()
}

fn cells(row: &EvalRow) -> [String; HEADER.len()] {
    let number = |v: Option<f64>, digits: usize| v.map(|v| format!("{v:.digits$}")).unwrap_or_default();
    let interval = row.kl_mean_ci95.map(|[low, high]| format!(" ({low:.5} to {high:.5})")).unwrap_or_default();
    // A path would say where the evaluation was made.
    let text = row.text.rsplit(['/', '\\']).next().unwrap_or_default().replace('|', "\\|");
    [
        text,
        row.protocol.clone(),
        row.length.to_string(),
        row.tokens.to_string(),
        number(Some(row.perplexity), 4),
        number(row.original_perplexity, 4),
        number(row.bits_per_byte, 4),
        format!("{}{interval}", number(row.kl_mean, 5)),
        number(row.kl_p99, 5),
        row.top1_agreement.map(|share| format!("{:.2} %", 100.0 * share)).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str, perplexity: f64) -> EvalRow {
        EvalRow { text: text.into(), protocol: "blocks".into(), length: 512, perplexity, ..EvalRow::default() }
    }

    #[test]
    fn a_row_is_added_or_replaced() {
        let card = format!("# M\n\n{}\nafter\n", empty());
        let one = add_row(&card, &row("texts/a.txt", 3.0));
        let two = add_row(&one, &row("b|c.txt", 4.0));
        let again =
            add_row(&two, &EvalRow { kl_mean: Some(0.25), kl_mean_ci95: Some([0.125, 0.5]), ..row("a.txt", 5.0) });
        let rows: Vec<&str> = again.lines().filter(|l| l.contains("blocks")).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0], "| a.txt | blocks | 512 | 0 | 5.0000 |  |  | 0.25000 (0.12500 to 0.50000) |  |  |");
        assert!(rows[1].starts_with("| b\\|c.txt | blocks"));
        assert!(again.starts_with("# M\n\n<!--") && again.ends_with(&format!("{END}\n\nafter\n")));
        assert!(!again.contains("/tmp"));
    }

    #[test]
    fn a_card_without_the_table_gets_one() {
        let card = add_row("# Mine", &row("a.txt", 3.0));
        assert!(card.starts_with("# Mine\n\n## Evaluation\n\n<!-- fewbit eval -->\n| text |"));
        assert_eq!(add_row(&card, &row("a.txt", 3.0)), card);
    }
}

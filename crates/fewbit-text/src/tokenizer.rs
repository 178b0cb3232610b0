use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fewbit_format::{Error, Result};
use serde_json::Value;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{
    AddedVocabulary, DecoderWrapper, Encoding, Model, ModelWrapper, NormalizerWrapper, OffsetType,
    PostProcessorWrapper, PreTokenizer, TokenizerImpl,
};

use crate::doubts;
use crate::gguf::GgufVocabulary;
use crate::growth;
use crate::pieces::{Pieces, Spelling, Token};
use crate::scores::ScoreMerges;
use crate::settings::Settings;
use crate::stream::Stream;

/// What happens to control tokens when text is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The text alone; `<s>` in it is three characters.
    Plain,
    /// The text alone, with BOS and EOS around it where the model's own rule wants them.
    PlainWithBos,
    /// Control tokens in the text are recognised; none is added. For rendered chat templates.
    Parsed,
    /// Control tokens in the text are recognised, and BOS and EOS are added where the model's own rule wants them.
    ParsedWithBos,
}

/// Turns text into the ids of one model's vocabulary, and ids into text.
pub struct Tokenizer {
    engine: Engine,
    /// The added tokens with control tokens left in the text.
    plain: AddedVocabulary,
    pieces: Arc<Pieces>,
    rule: Rule,
    bos: Option<u32>,
    eos: Option<u32>,
}

pub(crate) type Pipeline<M> =
    TokenizerImpl<M, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

enum Engine {
    Library(Box<Pipeline<ModelWrapper>>),
    Scores(Box<Pipeline<ScoreMerges>>),
}

/// Tokens, with their text, that stand before and after every text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) before: Vec<(u32, String)>,
    pub(crate) after: Vec<(u32, String)>,
}

const BAD_JSON: &str = "re-download it, or convert the model's tokenizer again";

/// An error of the tokenizers library as one of ours.
pub(crate) fn refused(what: &str, error: &tokenizers::Error) -> Error {
    Error::input(format!("{what} cannot be used ({error})"))
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; `settings` say which token is BOS and may overrule whether it is added.
    ///
    /// # Errors
    /// The reason, without the file, which the caller knows.
    pub fn from_json(bytes: &[u8], settings: &Settings) -> Result<Self> {
        let read = guarded(|| serde_json::from_slice::<tokenizers::Tokenizer>(bytes).map_err(Into::into));
        let mut library = read.map_err(|e| bad_json(&format!("cannot be read ({e})")))?.into_inner();
        if let Some(doubt) = doubts::moved_tokens(bytes, &library) {
            log::warn!("tokenizer.json: {doubt}");
        }
        let json = |part: serde_json::Result<Value>| part.map_err(|e| Error::internal(e.to_string()));
        let normalizer = json(serde_json::to_value(library.get_normalizer()))?;
        let post_processor = json(serde_json::to_value(library.get_post_processor()))?;
        growth::check(&normalizer, &post_processor).map_err(|e| e.or_hint(BAD_JSON))?;
        library.with_padding(None);
        library.with_truncation(None).map_err(|e| refused("the truncation", &e))?;
        let mut rule = Rule::of(&library)?;
        let id = |token: &Option<String>| token.as_deref().and_then(|t| library.token_to_id(t));
        let bos = id(&settings.bos_token).or_else(|| rule.before.first().map(|t| t.0));
        let eos = id(&settings.eos_token).or_else(|| rule.after.last().map(|t| t.0));
        let name = |id: Option<u32>| id.and_then(|id| Some((id, library.id_to_token(id)?)));
        overrule(&mut rule.before, settings.add_bos, name(bos));
        overrule(&mut rule.after, settings.add_eos, name(eos));
        Self::from_pipeline(library, rule, bos, eos)
    }

    /// Builds the tokenizer of a GGUF file from its vocabulary.
    ///
    /// # Errors
    /// An unknown model or pre-tokenizer, and lists that contradict each other, by the name of the key.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self> {
        vocabulary.clone().into_tokenizer()
    }

    /// Reads a SentencePiece `tokenizer.model` of the BPE kind.
    pub fn from_sentencepiece(bytes: &[u8], settings: &Settings) -> Result<Self> {
        crate::sentencepiece::read(bytes, settings)?.into_tokenizer()
    }

    pub(crate) fn from_pipeline(
        pipeline: Pipeline<ModelWrapper>,
        rule: Rule,
        bos: Option<u32>,
        eos: Option<u32>,
    ) -> Result<Self> {
        let spelling = match pipeline.get_decoder() {
            Some(d) => Spelling::from_decoder(&serde_json::to_value(d).map_err(|e| Error::internal(e.to_string()))?)?,
            None => Spelling::default(),
        };
        let pieces = pieces(&pipeline, &spelling)?;
        let plain = without_control(&pipeline);
        Ok(Self { engine: Engine::Library(Box::new(pipeline)), plain, pieces: Arc::new(pieces), rule, bos, eos })
    }

    pub(crate) fn from_scores(
        pipeline: Pipeline<ScoreMerges>,
        spelling: &Spelling,
        rule: Rule,
        bos: Option<u32>,
        eos: Option<u32>,
    ) -> Result<Self> {
        let pieces = pieces(&pipeline, spelling)?;
        let plain = without_control(&pipeline);
        Ok(Self { engine: Engine::Scores(Box::new(pipeline)), plain, pieces: Arc::new(pieces), rule, bos, eos })
    }

    /// A `tokenizer.json` that the tokenizers library of Hugging Face loads and that gives the same ids.
    ///
    /// A vocabulary with scores is written as the list of its merges; [`crate::check_round_trip`] proves the result.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        match &self.engine {
            Engine::Library(p) => json_of(p),
            Engine::Scores(p) => json_of(&merges_of(p).map_err(|e| unwritten(&e))?),
        }
    }

    /// The vocabulary that a GGUF file holds of this tokenizer.
    ///
    /// The translation need not be exact: build a tokenizer of the result and try it with
    /// [`crate::check_round_trip`] before it is written.
    ///
    /// # Errors
    /// A tokenizer that GGUF has no name for, by what is missing.
    pub fn to_gguf(&self) -> Result<GgufVocabulary> {
        let json = self.to_json()?;
        let json = serde_json::from_slice(&json).map_err(|e| Error::internal(format!("tokenizer.json: {e}")))?;
        let mut v = crate::to_gguf::vocabulary(&json)?;
        if let Engine::Scores(p) = &self.engine {
            v.scores = p.get_model().scores().to_vec();
        }
        (v.bos, v.eos) = (self.bos, self.eos);
        (v.add_bos, v.add_eos) = (Some(!self.rule.before.is_empty()), Some(!self.rule.after.is_empty()));
        Ok(v)
    }

    /// The ids of `text`.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let parsed = matches!(special, Special::Parsed | Special::ParsedWithBos);
        let around = matches!(special, Special::PlainWithBos | Special::ParsedWithBos);
        let ids = match &self.engine {
            Engine::Library(p) => ids(p, if parsed { p.get_added_vocabulary() } else { &self.plain }, text),
            Engine::Scores(p) => ids(p, if parsed { p.get_added_vocabulary() } else { &self.plain }, text),
        };
        let ids = ids.map_err(|e| refused("the text", &e))?;
        if !around {
            return Ok(ids);
        }
        let (before, after) = (self.rule.before.iter(), self.rule.after.iter());
        Ok(before.map(|t| t.0).chain(ids).chain(after.map(|t| t.0)).collect())
    }

    /// The ids of `text` as [`Special::Plain`], and for each the byte of `text` at which its part ends.
    ///
    /// Ends never fall: of the tokens that spell one character the first has all of its bytes, and an unknown
    /// character counts as long as it is in the text.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>)> {
        let encoding = match &self.engine {
            Engine::Library(p) => encoding(p, &self.plain, text, OffsetType::Byte),
            Engine::Scores(p) => encoding(p, &self.plain, text, OffsetType::Byte),
        };
        let encoding = encoding.map_err(|e| refused("the text", &e))?;
        let ends = encoding.get_offsets().iter().scan(0, |last, (_, end)| {
            *last = (*end).max(*last);
            Some(*last)
        });
        Ok((encoding.get_ids().to_vec(), ends.collect()))
    }

    /// The text of `ids` as a text of its own; control tokens have none, bytes that are no character become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_after(&[], ids)
    }

    /// The text of `ids` as it continues that of `before`: a leading space is kept.
    pub fn decode_after(&self, before: &[u32], ids: &[u32]) -> String {
        let mut bytes: Vec<u8> = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.pieces.bytes(id));
        }
        let text = if self.has_text(before) { &bytes } else { self.pieces.without_prefix_space(&bytes) };
        String::from_utf8_lossy(text).into_owned()
    }

    /// Decodes the answer to a prompt id by id; its chunks joined are [`Self::decode_after`].
    pub fn stream(&self, prompt_ids: &[u32]) -> Stream {
        Stream::new(Arc::clone(&self.pieces), !self.has_text(prompt_ids))
    }

    fn has_text(&self, ids: &[u32]) -> bool {
        ids.iter().any(|&id| !self.pieces.bytes(id).is_empty())
    }

    /// The token as the vocabulary writes it; empty for an id that it does not have.
    pub fn piece(&self, id: u32) -> String {
        let piece = match &self.engine {
            Engine::Library(p) => added(p.get_added_vocabulary(), id).or_else(|| p.get_model().id_to_token(id)),
            Engine::Scores(p) => added(p.get_added_vocabulary(), id).or_else(|| p.get_model().id_to_token(id)),
        };
        piece.unwrap_or_default()
    }

    /// The id of a token, written as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::Library(p) => p.token_to_id(token),
            Engine::Scores(p) => p.token_to_id(token),
        }
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text; a model may stop at others besides.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model's own rule puts BOS before a text.
    pub fn adds_bos(&self) -> bool {
        !self.rule.before.is_empty()
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        match &self.engine {
            Engine::Library(p) => p.get_vocab_size(true),
            Engine::Scores(p) => p.get_vocab_size(true),
        }
    }

    /// The highest id that encoding can give.
    pub fn max_id(&self) -> u32 {
        self.pieces.count().saturating_sub(1) as u32
    }
}

impl Rule {
    /// What the post-processor of a `tokenizer.json` puts around a text.
    fn of(library: &Pipeline<ModelWrapper>) -> Result<Self> {
        let encode =
            |around| guarded(|| library.encode_fast("a", around)).map_err(|e| refused("the post-processor", &e));
        let (inner, whole) = (encode(false)?, encode(true)?);
        let (inner, whole) = (inner.get_ids(), whole.get_ids());
        let added = whole.len().saturating_sub(inner.len());
        let start = (0..=added).find(|&at| whole[at..].starts_with(inner)).unwrap_or(0);
        let name = |&id: &u32| (id, library.id_to_token(id).unwrap_or_default());
        let after = whole.get(start + inner.len()..).unwrap_or_default();
        Ok(Self { before: whole[..start].iter().map(name).collect(), after: after.iter().map(name).collect() })
    }
}

/// Applies an explicit `add_bos_token` or `add_eos_token`.
fn overrule(tokens: &mut Vec<(u32, String)>, wanted: Option<bool>, token: Option<(u32, String)>) {
    match (wanted, token) {
        (Some(false), _) => tokens.clear(),
        (Some(true), Some(token)) if tokens.is_empty() => tokens.push(token),
        _ => {}
    }
}

fn bad_json(why: &str) -> Error {
    Error::input(why).hint(BAD_JSON)
}

/// Runs a part of the library. It panics where parts of a file contradict each other, such as merges that make more than
/// the longest token.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("its parts contradict each other".into()))
}

fn ids<M: Model>(p: &Pipeline<M>, added: &AddedVocabulary, text: &str) -> tokenizers::Result<Vec<u32>> {
    Ok(encoding(p, added, text, OffsetType::None)?.get_ids().to_vec())
}

fn encoding<M: Model>(
    p: &Pipeline<M>,
    added: &AddedVocabulary,
    text: &str,
    offsets: OffsetType,
) -> tokenizers::Result<Encoding> {
    guarded(|| {
        let mut parts = added.extract_and_normalize(p.get_normalizer(), text);
        if let Some(pre) = p.get_pre_tokenizer() {
            pre.pre_tokenize(&mut parts)?;
        }
        p.get_model().tokenize_in_pretokenized(&mut parts, None)?;
        parts.into_encoding(None, 0, offsets)
    })
}

fn without_control<M>(p: &Pipeline<M>) -> AddedVocabulary
where
    M: Model,
{
    let mut plain = p.get_added_vocabulary().clone();
    plain.set_encode_special_tokens(true);
    plain
}

fn added(vocabulary: &AddedVocabulary, id: u32) -> Option<String> {
    vocabulary.get_added_tokens_decoder().get(&id).map(|t| t.content.clone())
}

fn pieces<M: Model>(p: &Pipeline<M>, spelling: &Spelling) -> Result<Pieces> {
    let vocabulary = p.get_model().get_vocab();
    if let Some(doubt) = doubts::shared_id(&vocabulary) {
        log::warn!("the tokenizer: {doubt}");
    }
    let model = vocabulary.into_iter().map(|(text, id)| (id, Token::Piece(text)));
    // Added tokens come last: they overrule the model's piece of the same id.
    let added = p.get_added_vocabulary().get_added_tokens_decoder().iter().map(|(&id, token)| {
        let control = p.get_added_vocabulary().is_special_token(&token.content);
        (id, if control { Token::Control } else { Token::Added(token.content.clone()) })
    });
    Pieces::new(model.chain(added).collect(), spelling)
}

fn unwritten(why: &dyn std::fmt::Display) -> Error {
    Error::internal(format!("the tokenizer cannot be written: {why}"))
}

/// A pipeline as `tokenizer.json`.
///
/// The library writes as many ids as there are tokens, from 0 on: of a vocabulary with holes it leaves out the last.
fn json_of(p: &Pipeline<ModelWrapper>) -> Result<Vec<u8>> {
    let text = p.to_string(false).map_err(|e| unwritten(&e))?;
    let mut tokens: Vec<(String, u32)> = p.get_model().get_vocab().into_iter().collect();
    if tokens.iter().all(|(_, id)| (*id as usize) < tokens.len()) {
        return Ok(text.into_bytes());
    }
    tokens.sort_by_key(|(_, id)| *id);
    let mut json: Value = serde_json::from_str(&text).map_err(|e| unwritten(&e))?;
    if let Some(written) = json["model"]["vocab"].as_object_mut() {
        *written = tokens.into_iter().map(|(token, id)| (token, id.into())).collect();
    }
    serde_json::to_vec(&json).map_err(|e| unwritten(&e))
}

/// The same pipeline with scores turned into merges.
fn merges_of(p: &Pipeline<ScoreMerges>) -> tokenizers::Result<Pipeline<ModelWrapper>> {
    let mut out = Pipeline::new(ModelWrapper::BPE(p.get_model().to_bpe()?));
    out.with_normalizer(p.get_normalizer().cloned())?;
    out.with_pre_tokenizer(p.get_pre_tokenizer().cloned());
    out.with_post_processor(p.get_post_processor().cloned());
    out.with_decoder(p.get_decoder().cloned());
    out.with_added_vocabulary(p.get_added_vocabulary().clone());
    Ok(out)
}

//! Text to ids and back, by the vocabulary in the model's file: SentencePiece's merges by score (`llama`), or byte-pair
//! merges by rank (`gpt2`).

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use tesela::{
    Error, Result,
    gguf::{Array, FromValue, Gguf},
};

pub struct Tokenizer {
    pieces: Vec<String>,
    kinds: Vec<i32>,
    ids: HashMap<String, u32>,
    scheme: Scheme,
    bos: Option<u32>,
    ends: Vec<u32>,
}

enum Scheme {
    /// Pieces with scores; spaces are written U+2581, bytes without a piece `<0x0A>`.
    Scores { scores: Vec<f32>, space_first: bool, unknown: Option<u32> },
    /// Pieces of bytes, each byte written as a printable character; pairs `left right` by rank.
    Ranks { ranks: HashMap<String, usize>, words: Words },
}

/// How text falls into words, within which bytes merge.
#[derive(Clone, Copy, PartialEq)]
enum Words {
    Gpt2,
    /// As GPT-2's, but every digit stands alone.
    Digits,
    /// Llama 3's: up to three digits, a leading sign or space with letters, line ends after signs.
    Llama3,
}

/// Kinds of pieces in the file.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

const SPACE: &str = "\u{2581}";

impl Tokenizer {
    /// Reads the vocabulary of a file.
    pub fn load(file: &Gguf) -> Result<Tokenizer> {
        let pieces: Vec<String> = list::<&str>(file, "tokens")?.into_iter().map(str::to_owned).collect();
        let n = pieces.len();
        let kinds = match file.find::<Array>("tokenizer.ggml.token_type")? {
            Some(_) => list(file, "token_type")?,
            None => vec![1; n],
        };
        let model: &str = file.require("tokenizer.ggml.model")?;
        let id = |key: &str| -> Result<Option<u32>> {
            Ok(file.find(&format!("tokenizer.ggml.{key}_token_id"))?.filter(|&id: &u32| (id as usize) < n))
        };
        let flag = |key: &str| file.find::<bool>(&format!("tokenizer.ggml.add_{key}"));
        let scheme = match model {
            "llama" => Scheme::Scores {
                scores: list(file, "scores")?,
                space_first: flag("space_prefix")?.unwrap_or(true),
                unknown: id("unknown")?,
            },
            "gpt2" => Scheme::Ranks {
                ranks: list::<&str>(file, "merges")?.into_iter().map(str::to_owned).zip(0..).collect(),
                words: match file.find("tokenizer.ggml.pre")?.unwrap_or("gpt-2") {
                    "llama-bpe" | "llama3" | "dbrx" | "smaug-bpe" => Words::Llama3,
                    "refact" | "starcoder" | "command-r" => Words::Digits,
                    _ => Words::Gpt2,
                },
            },
            other => return Err(Error::unsupported(file.path(), format_args!("a vocabulary of kind {other}"))),
        };
        let sized = kinds.len() == n && !matches!(&scheme, Scheme::Scores { scores, .. } if scores.len() != n);
        if !sized {
            return Err(Error::file(file.path(), "is corrupt: its vocabulary's lists differ in length"));
        }
        let with_bos = flag("bos_token")?.unwrap_or(model == "llama");
        let bos = if with_bos { id("bos")? } else { None };
        let ends = [id("eos")?, id("eot")?].into_iter().flatten().collect();
        // Of equal pieces the first wins.
        let mut ids = HashMap::with_capacity(n);
        for (piece, id) in pieces.iter().zip(0..) {
            ids.entry(piece.clone()).or_insert(id);
        }
        Ok(Tokenizer { pieces, kinds, ids, scheme, bos, ends })
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// True where a text ends with this id.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The ids of a text, with the one that begins texts where the file asks for it.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut out: Vec<u32> = self.bos.into_iter().collect();
        match &self.scheme {
            Scheme::Scores { .. } if text.is_empty() => {}
            Scheme::Scores { scores, space_first, unknown } => {
                let text = format!("{}{text}", if *space_first { " " } else { "" }).replace(' ', SPACE);
                let rank = |pair: &str, _| Some(scores[*self.ids.get(pair)? as usize]);
                for piece in merged(&text, rank) {
                    match self.ids.get(piece) {
                        Some(&id) => out.push(id),
                        None => out.extend(
                            piece.bytes().filter_map(|b| self.ids.get(&format!("<0x{b:02X}>")).copied().or(*unknown)),
                        ),
                    }
                }
            }
            Scheme::Ranks { ranks, words } => {
                for word in words.split(text) {
                    let word: String = word.bytes().map(printable).collect();
                    if let Some(&id) = self.ids.get(&word).filter(|_| *words == Words::Llama3) {
                        out.push(id);
                        continue;
                    }
                    let rank = |pair: &str, middle: usize| {
                        let (left, right) = pair.split_at(middle);
                        ranks.get(&format!("{left} {right}")).map(|&rank| -(rank as f32))
                    };
                    out.extend(merged(&word, rank).into_iter().filter_map(|piece| self.ids.get(piece)));
                }
            }
        }
        out
    }

    /// The bytes an id stands for; a character may need several ids.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let (Some(piece), Some(&kind)) = (self.pieces.get(id as usize), self.kinds.get(id as usize)) else {
            return Vec::new();
        };
        match &self.scheme {
            _ if kind == CONTROL || kind == UNKNOWN => Vec::new(),
            Scheme::Scores { .. } if kind == BYTE => {
                let hex = piece.strip_prefix("<0x").and_then(|p| p.strip_suffix('>'));
                hex.and_then(|h| u8::from_str_radix(h, 16).ok()).into_iter().collect()
            }
            Scheme::Scores { .. } => piece.replace(SPACE, " ").into_bytes(),
            Scheme::Ranks { .. } => piece
                .chars()
                .flat_map(|c| (0..=255).find(|&b| printable(b) == c).map_or(c.to_string().into_bytes(), |b| vec![b]))
                .collect(),
        }
    }

    /// The text of ids; what is not UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match (&self.scheme, text.strip_prefix(' ')) {
            (Scheme::Scores { space_first: true, .. }, Some(rest)) => rest.to_owned(),
            _ => text,
        }
    }
}

fn list<'a, T: FromValue<'a>>(file: &'a Gguf, key: &str) -> Result<Vec<T>> {
    let key = format!("tokenizer.ggml.{key}");
    let wrong = || Error::file(file.path(), format_args!("{key} is not a list of {}", T::WHAT));
    file.require::<Array>(&key)?.collect().ok_or_else(wrong)
}

/// Cuts text into characters and joins neighbours, always the pair of the highest rank, of equals the leftmost.
/// `rank` gets the joined pair and where its right half begins.
fn merged(text: &str, rank: impl Fn(&str, usize) -> Option<f32>) -> Vec<&str> {
    // A piece is the bytes `at..ends[at]`; `before[at]` is where its left neighbour begins.
    let mut ends: Vec<usize> = vec![0; text.len()];
    let mut before: Vec<Option<usize>> = vec![None; text.len() + 1];
    let mut last = None;
    for (at, c) in text.char_indices() {
        (ends[at], before[at]) = (at + c.len_utf8(), last);
        last = Some(at);
    }
    let mut heap = BinaryHeap::new();
    let consider = |heap: &mut BinaryHeap<Pair>, left: usize, ends: &[usize]| {
        let middle = ends[left];
        let Some(&end) = ends.get(middle) else { return };
        if let Some(rank) = rank(&text[left..end], middle - left) {
            heap.push(Pair { rank, left, middle, end });
        }
    };
    for (at, _) in text.char_indices() {
        consider(&mut heap, at, &ends);
    }
    while let Some(Pair { left, middle, end, .. }) = heap.pop() {
        if ends[left] != middle || ends[middle] != end {
            continue; // one of the two has merged meanwhile
        }
        (ends[left], ends[middle]) = (end, 0);
        before[end] = Some(left);
        consider(&mut heap, left, &ends);
        if let Some(at) = before[left] {
            consider(&mut heap, at, &ends);
        }
    }
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        out.push(&text[at..ends[at]]);
        at = ends[at];
    }
    out
}

struct Pair {
    rank: f32,
    left: usize,
    middle: usize,
    end: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.total_cmp(&other.rank).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Pair {}

/// The printable character GPT-2 writes for a byte: itself where it is one, else the next free one from U+0100 on.
fn printable(byte: u8) -> char {
    let plain = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let code = if plain(byte) { byte as u32 } else { 256 + (0..byte).filter(|&b| !plain(b)).count() as u32 };
    char::from_u32(code).unwrap_or('?')
}

impl Words {
    /// Falls text into words as the model's regular expression does. Letters and numbers are Unicode's properties
    /// Alphabetic and Numeric, which differ from the expression's classes in rare marks only.
    fn split(self, text: &str) -> Vec<&str> {
        let chars: Vec<(usize, char)> = text.char_indices().collect();
        let mut out = Vec::new();
        let mut at = 0;
        while at < chars.len() {
            let end = at + self.word(&chars[at..]);
            let stop = chars.get(end).map_or(text.len(), |c| c.0);
            out.push(&text[chars[at].0..stop]);
            at = end;
        }
        out
    }

    /// How many characters the next word has; at least one.
    fn word(self, text: &[(usize, char)]) -> usize {
        let at = |i: usize| text.get(i).map(|c| c.1);
        let run = |from: usize, is: fn(char) -> bool| text[from..].iter().take_while(|c| is(c.1)).count();
        let sign = |c: char| !c.is_whitespace() && !c.is_alphabetic() && !c.is_numeric();
        let line_end = |c: char| matches!(c, '\r' | '\n');
        if at(0) == Some('\'') {
            let fold = |i| at(i).map(|c| if self == Words::Llama3 { c.to_ascii_lowercase() } else { c });
            match (fold(1), fold(2)) {
                (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => return 3,
                (Some('s' | 't' | 'm' | 'd'), _) => return 2,
                _ => {}
            }
        }
        let leads = |c: char| match self {
            Words::Llama3 => !line_end(c) && !c.is_alphabetic() && !c.is_numeric(),
            _ => c == ' ',
        };
        let skip = at(0).is_some_and(leads) as usize;
        if at(skip).is_some_and(char::is_alphabetic) {
            return skip + run(skip, char::is_alphabetic);
        }
        let space = (at(0) == Some(' ')) as usize;
        match self {
            Words::Gpt2 if at(space).is_some_and(char::is_numeric) => return space + run(space, char::is_numeric),
            Words::Digits if at(0).is_some_and(char::is_numeric) => return 1,
            Words::Llama3 if at(0).is_some_and(char::is_numeric) => return run(0, char::is_numeric).min(3),
            _ => {}
        }
        if at(space).is_some_and(sign) {
            let end = space + run(space, sign);
            return end + if self == Words::Llama3 { run(end, line_end) } else { 0 };
        }
        let blank = run(0, char::is_whitespace);
        let last_end = text[..blank].iter().rposition(|c| line_end(c.1));
        match last_end {
            Some(i) if self == Words::Llama3 => i + 1,
            // The last blank goes with the word that follows; for separate digits nothing does.
            _ if blank < text.len()
                && blank > 1
                && !(self == Words::Digits && at(blank).is_some_and(char::is_numeric)) =>
            {
                blank - 1
            }
            _ => blank.max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_split_as_the_expressions_do() {
        let text = "It's  12345 ok!\n\n  fin... \n";
        assert_eq!(Words::Gpt2.split(text), ["It", "'s", " ", " 12345", " ok", "!", "\n\n ", " fin", "...", " \n"]);
        assert_eq!(
            Words::Llama3.split(text),
            ["It", "'s", " ", " ", "123", "45", " ok", "!\n\n", " ", " fin", "...", " \n"]
        );
        assert_eq!(
            Words::Digits.split(text),
            ["It", "'s", "  ", "1", "2", "3", "4", "5", " ok", "!", "\n\n ", " fin", "...", " \n"]
        );
    }

    #[test]
    fn bytes_have_printable_characters() {
        assert_eq!((printable(b' '), printable(b'\n'), printable(b'a'), printable(0)), ('Ġ', 'Ċ', 'a', 'Ā'));
        let all: std::collections::HashSet<char> = (0..=255).map(printable).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn the_best_pair_merges_first() {
        let ranks = HashMap::from([("ab", 1.0), ("bc", 2.0), ("abc", 0.5), ("aa", 1.0)]);
        let rank = |pair: &str, _| ranks.get(pair).copied();
        assert_eq!(merged("abc", rank), ["abc"]);
        assert_eq!(merged("aaab", rank), ["aa", "ab"]);
        assert_eq!(merged("", rank), [""; 0]);
        assert_eq!(merged("xéy", rank), ["x", "é", "y"]);
    }
}

//! The bytes a token stands for, read from how the tokenizer's decoder treats it.

use tokenizers::{Decoder as _, DecoderWrapper};

/// The bytes of `token`, given as the vocabulary spells it, when it is neither the first nor the last of a text.
/// A character may be spread over several tokens, so they need not be UTF-8.
pub(super) fn token_bytes(decoder: Option<&DecoderWrapper>, token: &str) -> Vec<u8> {
    match decoder {
        Some(DecoderWrapper::Sequence(sequence)) => {
            let mut text = token.to_owned();
            for decoder in sequence.get_decoders() {
                match decode(decoder, &text) {
                    Decoded::Text(next) => text = next,
                    Decoded::Bytes(bytes) => return bytes,
                }
            }
            text.into_bytes()
        }
        Some(decoder) => match decode(decoder, token) {
            Decoded::Text(text) => text.into_bytes(),
            Decoded::Bytes(bytes) => bytes,
        },
        None => token.as_bytes().to_vec(),
    }
}

enum Decoded {
    Text(String),
    /// No later decoder has anything to do with bytes.
    Bytes(Vec<u8>),
}

fn decode(decoder: &DecoderWrapper, token: &str) -> Decoded {
    let text = |tokens: &[&str], index: usize| {
        let tokens = tokens.iter().map(|&t| t.to_owned()).collect();
        let decoded =
            decoder.decode_chain(tokens).ok().and_then(|mut all| all.get_mut(index).map(std::mem::take));
        Decoded::Text(decoded.unwrap_or_else(|| token.to_owned()))
    };
    match decoder {
        DecoderWrapper::ByteLevel(_) => match token.chars().map(byte_level).collect() {
            Some(bytes) => Decoded::Bytes(bytes),
            // Added tokens are spelt as they are.
            None => Decoded::Text(token.to_owned()),
        },
        DecoderWrapper::ByteFallback(_) => match byte_fallback(token) {
            Some(byte) => Decoded::Bytes(vec![byte]),
            None => Decoded::Text(token.to_owned()),
        },
        // These work on the whole text and change only its ends.
        DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_) => Decoded::Text(token.to_owned()),
        // These treat the first token of a text differently, and the last.
        DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) | DecoderWrapper::BPE(_) => {
            text(&["", token, ""], 1)
        }
        DecoderWrapper::CTC(_) | DecoderWrapper::Replace(_) | DecoderWrapper::Sequence(_) => {
            text(&[token], 0)
        }
    }
}

/// The byte a character of a byte-level vocabulary stands for: printable Latin-1 for itself, the others are numbered
/// from U+0100 (GPT-2's `bytes_to_unicode`).
fn byte_level(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        c @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => c,
        c @ 0x100..=0x120 => c - 0x100,
        c @ 0x121..=0x142 => c - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// `<0x41>` is the byte 0x41 (SentencePiece).
fn byte_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

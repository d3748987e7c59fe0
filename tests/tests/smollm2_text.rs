//! SmolLM2's text, as its GGUF file describes it.

use std::path::PathBuf;

use tread_core::checkpoint::Checkpoint;
use tread_core::model::Model;
use tread_core::text::{Detokenizer, Message};

fn smollm2() -> Model {
    let path = std::env::var_os("TREAD_SMOLLM2");
    let path = path.expect("TREAD_SMOLLM2 must name the GGUF file of SmolLM2; `cargo xtask test` sets it");
    Model::new("smollm2", Checkpoint::open(&PathBuf::from(path)).unwrap()).unwrap()
}

/// Against the ids llama.cpp gives for the same file (npm package @fugood/llama.node 1.7.15, special tokens parsed).
#[test]
fn tokens_are_those_of_llama_cpp() {
    let cases: [(&str, &[u32]); 29] = [
        ("Hello, world!", &[19556, 28, 905, 17]),
        (" leading space", &[2899, 1898]),
        ("two  spaces", &[11355, 216, 5600]),
        ("trailing   ", &[4861, 4966, 333]),
        ("\t\ttabs\tand \t mix", &[197, 197, 100, 7366, 197, 397, 216, 197, 3412]),
        ("a\nb\n\nc\n\n\nd\n\n\n\n", &[81, 198, 82, 198, 198, 83, 1116, 198, 84, 22342]),
        ("\r\n\r\nwin\r\n", &[7209, 198, 5544, 2738]),
        ("   \n  \n x", &[333, 11181, 198, 1792]),
        (
            "1234567890 3.14159 1,000,000 ٣٤٥ Ⅷ ½",
            &[
                33, 34, 35, 36, 37, 38, 39, 40, 41, 32, 216, 35, 30, 33, 36, 33, 37, 41, 216, 33, 28, 32, 32,
                32, 28, 32, 32, 32, 216, 164, 113, 164, 114, 164, 115, 216, 173, 223, 117, 216, 16738,
            ],
        ),
        (
            "x86_64 v2.0-rc1 0x1F",
            &[104, 40, 38, 79, 38, 36, 386, 34, 30, 32, 29, 6506, 33, 216, 32, 104, 33, 54],
        ),
        (
            "don't I'll we've IT'S they're 'tis",
            &[12420, 982, 339, 3060, 392, 3543, 9627, 23, 67, 502, 2316, 637, 34818],
        ),
        ("naïve café Ångström ﬁ", &[3546, 46494, 37366, 5549, 223, 863, 1321, 45682, 40367]),
        (
            "日本語のテキスト。中文，測試",
            &[
                23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100, 226,
                19076, 28589, 29184, 12831, 177, 133, 122, 179, 119, 116,
            ],
        ),
        (
            "한국어 文字 ไทย हिन्दी العربية",
            &[
                33085, 246, 181, 130, 251, 183, 240, 129, 17097, 240, 225, 36518, 216, 31933, 222, 10283,
                241, 10283, 112, 12335, 134, 27011, 30658, 16525, 44757, 37189, 27819, 34966, 20602, 31462,
                23339, 43463,
            ],
        ),
        (
            "😀👩\u{200D}👩\u{200D}👧\u{200D}👦🇩🇪 emoji🏽",
            &[
                10813, 242, 218, 10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117, 321,
                231, 10813, 235, 116, 10813, 225, 119, 10813, 225, 120, 649, 33777, 10813, 233, 138,
            ],
        ),
        (
            "fn main() {\n    println!(\"{}\", x+=1);\n}\n",
            &[
                7853, 1085, 1000, 1662, 472, 1628, 34115, 17, 43331, 1002, 1792, 32657, 33, 4258, 198, 109,
                198,
            ],
        ),
        (
            "def f(x):\n\treturn x**2 # ok\n",
            &[1604, 275, 24, 104, 727, 198, 197, 5406, 1792, 828, 34, 907, 10907, 198],
        ),
        (
            "https://example.com/a?b=c&d=%20#e",
            &[4687, 1742, 7434, 30, 824, 31, 81, 47, 82, 45, 83, 22, 84, 23446, 34, 32, 19, 85],
        ),
        ("!!! ... --- ??? ===>", &[29646, 4563, 21749, 9148, 16693, 446, 1189, 46]),
        (
            "\u{A0}nbsp\u{3000}ideographic\u{200B}zero",
            &[15442, 94, 32093, 12109, 218, 489, 4551, 321, 229, 13723],
        ),
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            &[1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198],
        ),
        ("<|endoftext|>a<|im_start|> b <|im_end|>", &[0, 81, 1, 278, 216, 2]),
        ("<repo_name>x<file_sep>y", &[3, 104, 5, 105]),
        (
            "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 Z\u{351}\u{36B}\u{313}\u{36A}\u{302}\u{36B}\u{33D}\u{34F}\u{334}\u{319}\u{324}\u{31E}\u{349}\u{35A}\u{32F}\u{31E}\u{320}\u{34D}A",
            &[
                23159, 238, 242, 23159, 238, 121, 23159, 238, 116, 23159, 238, 250, 23159, 238, 122, 23159,
                238, 111, 23159, 238, 112, 1777, 152, 235, 152, 121, 151, 237, 152, 120, 151, 220, 152, 121,
                151, 138, 152, 233, 151, 129, 151, 243, 151, 114, 151, 248, 152, 227, 152, 244, 151, 124,
                151, 248, 151, 250, 152, 231, 49,
            ],
        ),
        ("\u{0}\u{1}\u{7F}", &[190, 191, 217]),
        ("ǅ ß ẞ İı", &[146, 223, 5549, 249, 15822, 135, 248, 24488, 125, 20335]),
        ("\u{FEFF}bom � repl", &[186, 136, 140, 82, 300, 216, 24211, 3842]),
        (
            "snake_case camelCase SCREAMING_CASE",
            &[48284, 79, 7544, 32782, 10802, 15341, 48815, 4728, 79, 51, 13108],
        ),
        ("   ", &[333]),
    ];
    let model = smollm2();
    let tokenizer = model.tokenizer().unwrap();
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids, false).unwrap(), text);
        let mut detokenizer = Detokenizer::new(false);
        let pieces = ids.iter().map(|&id| detokenizer.push(tokenizer, id).unwrap()).collect::<String>();
        assert_eq!(pieces + &detokenizer.finish(tokenizer).unwrap(), text);
    }
}

#[test]
fn chat_follows_the_template_in_the_file() {
    let model = smollm2();
    let messages =
        [Message::new("user", "Hi"), Message::new("assistant", "Hello!"), Message::new("user", "Bye")];
    let prompt = model.template().unwrap().render(&messages, None, true).unwrap();
    let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    let expected = format!(
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\
         Hello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(prompt, expected);
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode(&prompt, false).unwrap();
    assert_eq!(ids.iter().filter(|&&id| tokenizer.is_special(id)).count(), 9);
    assert_eq!(model.stop_ids, [2], "<|im_end|>");
    assert_eq!(model.parameters(), (134_515_008, 134_515_008));
    assert_eq!(tokenizer.vocab_size(), model.config.vocab_size());
}

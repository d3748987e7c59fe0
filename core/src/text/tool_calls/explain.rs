//! Tools for models whose chat template knows none.

use serde_json::Value;

use super::super::tojson;

/// The text of a system message that explains `tools`, a list as in the OpenAI API, and how to call them in the Hermes
/// form. The words are those of Qwen's chat templates.
pub fn explain_tools(tools: &Value) -> String {
    let tools = tools.as_array().into_iter().flatten();
    let signatures: String = tools.map(|tool| format!("\n{}", tojson::spaced(tool))).collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with \
         function signatures within <tools></tools> XML tags:\n<tools>{signatures}\n</tools>\n\nFor each function \
         call, return a json object with function name and arguments within <tool_call></tool_call> XML \
         tags:\n<tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>"
    )
}

use clap::{Args, Subcommand};
use jiff::Timestamp;
use vm_agent_schemas::api::{List, NewToken, TokenRequest};
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::ids::TokenId;

use crate::Context;
use crate::exit::{CommandResult, Exit};
use crate::render;
use crate::ui::{Format, OutputArgs};

/// Make, list and revoke tokens for the API over TCP
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it: the one time that it is shown
    Create {
        /// Who or what it is for
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the tokens
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a token worthless
    Revoke {
        /// The token's id
        id: TokenId,
    },
}

pub(crate) async fn run(context: &mut Context, args: TokenArgs) -> CommandResult {
    let client = context.place.client().await?;
    match args.command {
        TokenCommand::Create { name, output } => {
            let answer = client.post::<NewToken>("/tokens", &TokenRequest { name }).await?;
            let NewToken { token, secret } = &answer.content;
            context.ui.document(output.output, &answer.raw, || secret.expose().to_owned())?;
            context.ui.status(format_args!("token {} for {}; it is not shown again", token.id, token.name))?;
        }
        TokenCommand::Ls { output } => {
            let answer = client.get::<List<ApiToken>>("/tokens").await?;
            let tokens = &answer.content.items;
            if tokens.is_empty() && matches!(output.output, Format::Table | Format::Wide) {
                context.ui.hint("there are no tokens; `vm-agent token create NAME` makes one")?;
            } else {
                context.ui.document(output.output, &answer.raw, || render::token_table(tokens, Timestamp::now()))?;
            }
        }
        TokenCommand::Revoke { id } => {
            client.delete(&format!("/tokens/{id}")).await?;
            context.ui.status(format_args!("token {id} is worthless now"))?;
        }
    }
    Ok(Exit::SUCCESS)
}

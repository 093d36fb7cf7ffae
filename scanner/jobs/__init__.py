"""The jobs that users ask for; they alone join the stages."""

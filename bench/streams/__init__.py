"""The streams on which recommenders and trainers are measured: downloaded, made, simulated."""

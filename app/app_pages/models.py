import streamlit as st

words = st.session_state.words
st.title(words["models.title"])

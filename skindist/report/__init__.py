"""What people look at: pictures and pages made from a folder of images or from a run folder.

Nothing here trains, or changes what it reports on; the command line and the end of a run may import it. Open html.py
first: a page is one file, made from a template beside it. run_page.py fills that of a run, runs_page.py that of
several; an audit is plain data (sections, tables, pictures), which audit.py fills and page.py shows.
"""

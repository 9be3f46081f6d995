"""Reading of input tables: Parquet, CSV, JSON lines, folders of those, `datasets` folders, Hub data sets.

A table is declared once, as a `Schema`. What a user gives is converted to the declared types. A bad row is marked with
its reason, or is an error that names file, line, value and remedy. Images stay bytes or paths: nothing is decoded here.
"""

from runtime.tables.conform import conform as conform
from runtime.tables.files import FORMATS as FORMATS
from runtime.tables.files import Location as Location
from runtime.tables.files import locate as locate
from runtime.tables.files import visible_files as visible_files
from runtime.tables.schema import IMAGE as IMAGE
from runtime.tables.schema import IMAGE_TYPE as IMAGE_TYPE
from runtime.tables.schema import MARKS as MARKS
from runtime.tables.schema import ROW_DETAIL as ROW_DETAIL
from runtime.tables.schema import ROW_FAULT as ROW_FAULT
from runtime.tables.schema import BrokenFile as BrokenFile
from runtime.tables.schema import Schema as Schema
from runtime.tables.schema import none_usable as none_usable
from runtime.tables.schema import one_line as one_line
from runtime.tables.schema import remedy as remedy
from runtime.tables.table import Part as Part
from runtime.tables.table import Table as Table
from runtime.tables.table import open_table as open_table
